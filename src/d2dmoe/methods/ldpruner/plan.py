"""LD-Pruner's stages and checks."""

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import need_section, trained_steps
from d2dmoe.methods.ldpruner.options import LDPrunerConfig, LDPrunerVariant
from d2dmoe.models import ARCHITECTURES, names_where


def chains(task: TaskConfig, variant: LDPrunerVariant) -> list[Chain]:
    """What it begins with, and a fine-tuning for every number of operators removed, which takes its
    passes from the former."""
    section = getattr(task, variant.method)
    first = trained_steps(task, variant, section.epochs)
    options = section.model_dump()
    return [
        [*first, ("ldpruner", LDPrunerConfig(**options, removed=count))]
        for count in variant.removed
    ]


def knob(task: TaskConfig, variant: LDPrunerVariant) -> str:
    """None: every model has one operating point."""
    return "dense"


def check(task: TaskConfig, name: str, variant: LDPrunerVariant) -> None:
    """Operators can be left out, an FFN stays, and the training before has passes left; raises
    ValueError for the first fault."""
    own = need_section(task, name, "ldpruner")
    if not ARCHITECTURES[task.model.architecture].removable:
        raise ValueError(
            f"variant '{name}': attentions and FFNs of the architecture "
            f"'{task.model.architecture}' cannot be left out, those of {names_where('removable')} "
            "can"
        )
    most = 2 * task.model.layers - 1
    if max(variant.removed) > most:
        raise ValueError(
            f"variant '{name}': removed = {max(variant.removed)} leaves no FFN; a model of "
            f"{task.model.layers} layers can lose up to {most} attentions and FFNs"
        )
    if not own.epochs < task.epochs:
        raise ValueError(
            f"variant '{name}': ldpruner.epochs = {own.epochs:g} must be below sparsify.epochs + "
            f"router.epochs = {task.epochs:g}, of which they are taken"
        )
