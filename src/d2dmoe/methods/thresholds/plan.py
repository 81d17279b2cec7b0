"""Stages and checks of CATS, CHESS and TEAL."""

from typing import Any

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.checks import need_divisor, trained_steps
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
    size = getattr(variant, "expert_size", None)
    if size is not None:
        need_divisor(name, "expert_size", size, task.model.d_ff)
