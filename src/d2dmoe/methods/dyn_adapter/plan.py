"""Dyn-Adapter's stages and checks."""

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import need_epochs, need_exits, need_section
from d2dmoe.methods.dyn_adapter.options import DynAdapterVariant


def chains(task: TaskConfig, variant: DynAdapterVariant) -> list[Chain]:
    """One training, of adapters and heads on the dense reference: the backbone stays as it is, so
    it must be the better of the two dense models."""
    return [[task.finetune_step, ("dyn_adapter", getattr(task, variant.method))]]


def knob(task: TaskConfig, variant: DynAdapterVariant) -> str:
    """The confidence from which on a sample leaves."""
    return "confidence"


def check(task: TaskConfig, name: str, variant: DynAdapterVariant) -> None:
    """A classifier, as many passes as every variant; raises ValueError for the first fault."""
    own = need_section(task, name, "dyn_adapter")
    need_exits(task, name, own.every, "dyn_adapter")
    need_epochs(task, name, own.epochs, "dyn_adapter.epochs")
