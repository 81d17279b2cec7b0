"""Dyn-Adapter's options."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.config.variant import Variant


class DynAdapterConfig(TaskTrainingConfig):
    """Of variants with the method dyn_adapter: adapters and early heads of the dense model, which
    stays frozen."""

    width: int = Field(8, gt=0, description="Neurons of an adapter, of which each block has one")
    every: int = Field(
        1, gt=0, description="Blocks from one exit to the next; the last block has none"
    )
    head_width: int | None = Field(
        None, gt=0, description="Hidden neurons of a head; null: it is one linear map"
    )


class DynAdapterVariant(Variant):
    """Dyn-Adapter: the dense model with adapters and early exits."""

    method: Literal["dyn_adapter"] = Field(description="Dyn-Adapter: adapters and early heads")
