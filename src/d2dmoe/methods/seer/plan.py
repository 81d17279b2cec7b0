"""SEER-MoE's stages and checks."""

from dataclasses import replace

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import need_divisor, need_section
from d2dmoe.methods.conversion.options import D2DMoEVariant
from d2dmoe.methods.conversion.plan import conversion
from d2dmoe.methods.seer.options import SEERConfig, SEERVariant


def chains(task: TaskConfig, variant: SEERVariant) -> list[Chain]:
    """One: D2DMoE's, whose sparsification gives passes to the fine-tuning of what is left."""
    section = getattr(task, variant.method)
    stages = conversion(task, D2DMoEVariant(method="d2dmoe", label=variant.label))
    left = round(task.sparsify.epochs - section.epochs, 10)
    sparsify = stages.sparsify.model_copy(update={"epochs": left})
    cfg = SEERConfig(**section.model_dump(), removed=variant.removed, scope=variant.scope)
    return [[*replace(stages, sparsify=sparsify).chain, ("seer", cfg)]]


def knob(task: TaskConfig, variant: SEERVariant) -> str:
    """The share of the experts left that a token runs."""
    return "active"


def check(task: TaskConfig, name: str, variant: SEERVariant) -> None:
    """Sizes divide, and sparsification has passes left; raises ValueError for the first fault."""
    own = need_section(task, name, "seer")
    need_divisor(name, "clustering.expert_size", task.clustering.expert_size, task.model.d_ff)
    if own.epochs > task.sparsify.epochs:
        raise ValueError(
            f"variant '{name}': seer.epochs = {own.epochs:g} exceeds sparsify.epochs = "
            f"{task.sparsify.epochs:g}, of which they are taken"
        )
