"""AdapMoE's stages and checks."""

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.adapmoe.options import AdapMoEVariant
from d2dmoe.methods.checks import need_divisor, need_epochs
from d2dmoe.methods.conversion.options import ConversionVariant, RouterChange
from d2dmoe.methods.conversion.plan import Conversion, conversion


def chains(task: TaskConfig, variant: AdapMoEVariant) -> list[Chain]:
    """One: D2DMoE's, and the sensitivities of its layers."""
    return [[*_routed(task, variant).chain, ("sensitivity", variant.sensitivity)]]


def knob(task: TaskConfig, variant: AdapMoEVariant) -> str:
    """The tolerance T."""
    return "sensitivity"


def check(task: TaskConfig, name: str, variant: AdapMoEVariant) -> None:
    """Sizes divide, as many passes as every variant; raises ValueError for the first fault."""
    need_divisor(name, "clustering.expert_size", task.clustering.expert_size, task.model.d_ff)
    need_epochs(task, name, _routed(task, variant).epochs, "sparsify + router epochs")


def _routed(task: TaskConfig, variant: AdapMoEVariant) -> Conversion:
    """The stages of D2DMoE with the variant's routers."""
    router = RouterChange(kind=variant.router)
    given = ConversionVariant(method=variant.method, label=variant.label, router=router)
    return conversion(task, given)
