"""Stages and checks of quantised dense models."""

from d2dmoe.config.compression import QuantizeConfig
from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.methods.quantized.options import QuantizedVariant


def chains(task: TaskConfig, variant: QuantizedVariant) -> list[Chain]:
    """One, without any training."""
    return [[("quantize", QuantizeConfig(weights=variant.quantize))]]


def knob(task: TaskConfig, variant: QuantizedVariant) -> str:
    """None: there is one operating point."""
    return "dense"


def check(task: TaskConfig, name: str, variant: QuantizedVariant) -> None:
    """Any dense model can be quantised."""
