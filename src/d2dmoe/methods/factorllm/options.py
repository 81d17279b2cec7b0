"""FactorLLM's options; the defaults are its paper's."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.strict import distinct
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.config.variant import Variant


class FactorLLMSection(TaskTrainingConfig):
    """Of variants with the method factorllm: the training of model and routers together."""

    experts: int = Field(4, gt=1, description="N, the experts of a layer; must divide d_ff")
    router_weight: float = Field(
        0.05, ge=0, description="Weight of the routers' divergence from the teacher's labels"
    )
    balance_weight: float = Field(0.01, ge=0, description="Weight of the loads' balance loss")


class FactorLLMConfig(FactorLLMSection):
    """The same for one number of experts that run, of which a variant has several."""

    active: int = Field(gt=0, description="K, the experts that a token runs")


class FactorLLMVariant(Variant):
    """FactorLLM: the dense model in a few experts; a training for every number of experts run."""

    method: Literal["factorllm"] = Field(description="Contiguous split, routers by distillation")
    active: Annotated[
        list[Annotated[int, Field(gt=0)]],
        Field(min_length=1, description="Experts a token, K; an operating point each"),
        distinct("a number"),
    ] = [2]
