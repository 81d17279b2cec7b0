"""ZTW's options."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.config.variant import Variant


class ZTWConfig(TaskTrainingConfig):
    """Of variants with the method ztw: early exits of the dense model, which stays frozen."""

    every: int = Field(
        1, gt=0, description="Blocks from one exit to the next; the last block has none"
    )
    width: int | None = Field(
        None, gt=0, description="Hidden neurons of a head; null: it is one linear map"
    )


class ZTWVariant(Variant):
    """ZTW: the dense model with early exits."""

    method: Literal["ztw"] = Field(description="Zero Time Waste: cascaded heads, ensembled")
