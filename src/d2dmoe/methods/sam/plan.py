"""SAM's stages and checks."""

from dataclasses import replace

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import divisors, need_divisor, need_section
from d2dmoe.methods.conversion.options import D2DMoEVariant
from d2dmoe.methods.conversion.plan import conversion
from d2dmoe.methods.sam.options import SAMConfig, SAMVariant


def chains(task: TaskConfig, variant: SAMVariant) -> list[Chain]:
    """One: D2DMoE's, whose sparsification gives passes to the fine-tuning."""
    section = getattr(task, variant.method)
    stages = conversion(task, D2DMoEVariant(method="d2dmoe", label=variant.label))
    left = round(task.sparsify.epochs - section.epochs, 10)
    sparsify = stages.sparsify.model_copy(update={"epochs": left})
    cfg = SAMConfig(**section.model_dump(), groups=variant.groups)
    return [[*replace(stages, sparsify=sparsify).chain, ("sam", cfg)]]


def knob(task: TaskConfig, variant: SAMVariant) -> str:
    """The share of its group's experts that a token runs."""
    return "grouped"


def check(task: TaskConfig, name: str, variant: SAMVariant) -> None:
    """Sizes divide, and sparsification has passes left; raises ValueError for the first fault."""
    own = need_section(task, name, "sam")
    size = task.clustering.expert_size
    need_divisor(name, "clustering.expert_size", size, task.model.d_ff)
    experts = task.model.d_ff // size
    if experts % variant.groups:
        raise ValueError(
            f"variant '{name}': groups = {variant.groups} must divide its {experts} experts; "
            f"allowed: {divisors(experts)}"
        )
    if own.epochs > task.sparsify.epochs:
        raise ValueError(
            f"variant '{name}': sam.epochs = {own.epochs:g} exceeds sparsify.epochs = "
            f"{task.sparsify.epochs:g}, of which they are taken"
        )
