"""A method without any training: a share of the dense model's hidden neurons is removed."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.task import Chain, TaskConfig
from d2dmoe.config.variant import Variant


class ToyVariant(Variant):
    """The dense model without its hidden neurons of the smallest weights."""

    method: Literal["toy"] = Field(description="Removes hidden neurons by magnitude")


def chains(task: TaskConfig, variant: ToyVariant) -> list[Chain]:
    """The dense model as it is."""
    return [[]]


def knob(task: TaskConfig, variant: ToyVariant) -> str:
    """The share of the hidden neurons that is removed."""
    return "share"


def check(task: TaskConfig, name: str, variant: ToyVariant) -> None:
    """Neurons can be removed from any model."""
