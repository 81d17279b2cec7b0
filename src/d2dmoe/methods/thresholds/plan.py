"""Stages and checks of CATS, CHESS and TEAL."""

from typing import Any

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import divisors, trained_steps
from d2dmoe.methods.thresholds.options import (
    CHESSVariant,
    HiddenVariant,
    InputThresholdsConfig,
    TEALVariant,
    ThresholdsConfig,
)


def chains(task: TaskConfig, variant: HiddenVariant | TEALVariant) -> list[Chain]:
    """One: the model that it begins with, and the calibration."""
    return [[*trained_steps(task, variant), _calibration(task, variant)]]


def _calibration(
    task: TaskConfig, variant: HiddenVariant | TEALVariant
) -> tuple[str, ThresholdsConfig | InputThresholdsConfig]:
    given: dict[str, Any] = {"samples": variant.samples, "batch_size": variant.batch_size}
    if isinstance(variant, TEALVariant):
        return "input_thresholds", InputThresholdsConfig(step=variant.step, **given)
    given |= {"expert_size": variant.expert_size, "clustering": task.clustering.method}
    if isinstance(variant, CHESSVariant):
        given |= {"score": "contextual", "attention": variant.attention}
    else:
        given |= {"score": "magnitude"}
    return "thresholds", ThresholdsConfig(**given)


def knob(task: TaskConfig, variant: HiddenVariant | TEALVariant) -> str:
    """The target density."""
    return "density"


def check(task: TaskConfig, name: str, variant: HiddenVariant | TEALVariant) -> None:
    """The sizes of experts divide; raises ValueError if they do not."""
    size, d_ff = getattr(variant, "expert_size", None), task.model.d_ff
    if size is not None and d_ff % size:
        raise ValueError(
            f"variant '{name}': expert_size = {size} must divide model.d_ff = {d_ff}; "
            f"allowed: {divisors(d_ff)}"
        )
