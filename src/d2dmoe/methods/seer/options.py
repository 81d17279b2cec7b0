"""SEER-MoE's options."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.config.variant import Variant

Removed = Annotated[float, Field(ge=0, lt=1, description="Share of all experts that is removed")]
Scope = Annotated[
    Literal["layer", "global"],
    Field(description="Whether experts compete within their layer, or all of them together"),
]


class SEERSection(TaskTrainingConfig):
    """Of variants with the method seer: the fine-tuning of what is left of a routed model; its
    passes are taken from the sparsification's."""

    samples: int = Field(256, gt=0, description="Training samples that experts are ranked on")
    active: float = Field(
        gt=0, le=1, description="Share of the experts left that a token runs in fine-tuning"
    )
    entropy_weight: float = Field(0.01, ge=0, description="Weight of the routers' entropy")
    router_weight: float = Field(
        1.0, ge=0, description="Weight of the routers' own loss, on which they learn on"
    )


class SEERConfig(SEERSection):
    """The same for one way to remove experts."""

    removed: Removed
    scope: Scope


class SEERVariant(Variant):
    """D2DMoE's routed model without the experts that its routers expect least of."""

    method: Literal["seer"] = Field(description="SEER-MoE: experts removed, fine-tuned, top-k")
    removed: Removed
    scope: Scope = "layer"
