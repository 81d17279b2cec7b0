"""Stages and checks of narrow dense models."""

from d2dmoe.config.stages import DenseConfig
from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.narrow.options import NarrowVariant


def chains(task: TaskConfig, variant: NarrowVariant) -> list[Chain]:
    """A dense training for every width, and the same training on as the dense reference gets."""
    stage, cfg = task.dense_step
    assert isinstance(cfg, DenseConfig)
    models = [cfg.model.model_copy(update={"d_ff": width}) for width in variant.widths]
    dense = [cfg.model_copy(update={"model": model}) for model in models]
    return [[(stage, narrow), task.finetune_step] for narrow in dense]


def knob(task: TaskConfig, variant: NarrowVariant) -> str:
    """None: every model has one operating point."""
    return "dense"


def check(task: TaskConfig, name: str, variant: NarrowVariant) -> None:
    """Narrower than the dense model, and trained from scratch; raises ValueError for the first
    fault."""
    if max(variant.widths) >= task.model.d_ff:
        raise ValueError(
            f"variant '{name}': widths = {variant.widths} must be below model.d_ff = "
            f"{task.model.d_ff}"
        )
    if task.model.weights != "scratch":
        raise ValueError(
            f"variant '{name}': a narrow model is trained from scratch, but model.weights = "
            f"{task.model.weights}; leave the variant out"
        )
