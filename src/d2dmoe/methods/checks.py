"""What the checks of several methods share; a fault is a ValueError that names keys and values."""

import math

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.config.trained import TrainedVariant
from d2dmoe.models import ARCHITECTURES


def need_epochs(task: TaskConfig, name: str, epochs: float, key: str) -> None:
    """A variant is trained for as many passes as every other."""
    if not math.isclose(epochs, task.epochs):
        raise ValueError(
            f"variant '{name}': {key} = {epochs:g}, but the task's sparsify.epochs + "
            f"router.epochs is {task.epochs:g}; every variant must get the same number of steps"
        )


def trained_steps(task: TaskConfig, variant: TrainedVariant, taken: float = 0.0) -> Chain:
    """The stages, after the dense model's, of the model that a variant begins with; `taken` are the
    passes over the data that the variant's own training takes of its training."""
    starts = {"finetuned": task.finetune_step, "sparsified": ("sparsify", task.sparsify)}
    stage, cfg = starts[variant.start]
    if taken:
        cfg = cfg.model_copy(update={"epochs": round(task.epochs - taken, 10)})
    return [(stage, cfg)]


def need_section(task: TaskConfig, name: str, section: str):
    """The options of a section that a variant needs."""
    if getattr(task, section) is None:
        raise ValueError(f"variant '{name}': the task has no section {section}")
    return getattr(task, section)


def need_exits(task: TaskConfig, name: str, every: int, section: str) -> None:
    """A classifier by its first token, with a block before the last that an exit can follow."""
    if not ARCHITECTURES[task.model.architecture].class_token:
        raise ValueError(f"variant '{name}': {section} needs a classifier; leave it out")
    if every >= task.model.layers:
        raise ValueError(
            f"variant '{name}': {section}.every = {every} leaves no block of {task.model.layers} "
            "for an exit; the last has none"
        )


def need_divisor(name: str, key: str, value: int, d_ff: int) -> None:
    """Experts of equal size share the hidden neurons without a rest."""
    if d_ff % value:
        raise ValueError(
            f"variant '{name}': {key} = {value} must divide model.d_ff = {d_ff}; "
            f"allowed: {divisors(d_ff)}"
        )


def divisors(number: int) -> list[int]:
    """For messages: what divides a number; of one above 2**32, perhaps not all of it."""
    low = [i for i in range(1, min(math.isqrt(number), 2**16) + 1) if number % i == 0]
    return sorted({*low, *(number // i for i in low)})
