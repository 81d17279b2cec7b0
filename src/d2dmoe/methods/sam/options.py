"""SAM's options."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.config.variant import Variant

Groups = Annotated[int, Field(gt=0, description="G, groups of a layer's experts, equally large")]


class SAMSection(TaskTrainingConfig):
    """Of variants with the method sam: the fine-tuning of a routed model in which a token runs
    experts of one group; its passes are taken from the sparsification's."""

    active: float = Field(
        gt=0, le=1, description="Share of a group's experts that a token runs in fine-tuning"
    )
    balance_weight: float = Field(0.01, ge=0, description="Weight of the groups' balance loss")
    alignment_weight: float = Field(
        0.1, ge=0, description="Weight of what the best experts would give outside of the group"
    )
    router_weight: float = Field(
        1.0, ge=0, description="Weight of the routers' own loss, on which they learn on"
    )


class SAMConfig(SAMSection):
    """The same for one number of groups."""

    groups: Groups


class SAMVariant(Variant):
    """D2DMoE's routed model with its experts in groups, of which a token runs one's best."""

    method: Literal["sam"] = Field(description="SAM: first a group of experts, then top-k in it")
    groups: Groups
