"""A-ViT's options; the defaults are its paper's."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.strict import distinct
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.config.variant import Variant


class AViTTrainingConfig(TaskTrainingConfig):
    """Of variants with the method avit: fine-tuning of a ViT whose tokens halt, for any target
    depth."""

    ponder_weight: float = Field(5e-4, ge=0, description="Weight of the ponder loss, alpha_p")
    prior_weight: float = Field(0.1, ge=0, description="Weight of the prior's KL loss, alpha_d")
    prior_std: float = Field(1.0, gt=0, description="Standard deviation of the prior, in blocks")
    gamma: float = Field(5.0, gt=0, description="Slope of the halting score in its channel")
    beta: float = Field(
        -10.0, description="Offset of the halting score; low, so that no token halts at first"
    )


class AViTConfig(AViTTrainingConfig):
    """The same for one target depth, of which a variant has several."""

    depth: float = Field(gt=0, description="Centre of the depths' prior, in blocks from 1 on")


class AViTVariant(Variant):
    """A-ViT: the dense model with tokens that halt; a training for every target depth."""

    method: Literal["avit"] = Field(description="A-ViT: tokens halt by accumulated scores")
    depths: Annotated[
        list[Annotated[float, Field(gt=0)]],
        Field(
            min_length=1,
            description="Target depths of the prior, in blocks; an operating point each",
        ),
        distinct("a depth"),
    ]
