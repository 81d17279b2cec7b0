"""Options of the paper's stages, from the dense model to the routers."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from d2dmoe.config.model import ModelConfig
from d2dmoe.config.named import OneOf
from d2dmoe.config.strict import COMPLETED, Strict, distinct
from d2dmoe.config.training import TaskTrainingConfig, TrainingConfig
from d2dmoe.router_kinds import ROUTER_KINDS

PenaltyMode = Literal["relu_hoyer", "relu_l1", "gelu_clamped", "gelu_hoyer_clamped"]
Schedule = Literal["constant", "linear", "linear_warmup"]
ClusteringMethod = Literal["kmeans", "random", "contiguous"]
ProjectionRole = Literal["q", "k", "v", "o"]
RouterKindName = Annotated[str, OneOf(ROUTER_KINDS, "kind of router")]

Rate = Annotated[float, Field(gt=0)]
Tau = Annotated[float, Field(ge=0, le=1)]


class DenseConfig(TaskTrainingConfig):
    """The training of the dense model, and the model."""

    model: ModelConfig


class SparsifyConfig(TaskTrainingConfig):
    """Sparsity enforcement (paper section 3.1)."""

    mode: Annotated[PenaltyMode, COMPLETED] = Field(
        description="What is penalised, and whether GELU becomes ReLU"
    )
    alpha: Annotated[float, COMPLETED] = Field(
        ge=0, description="Weight of the sparsity penalty; 0: none"
    )
    schedule: Schedule = Field("linear_warmup", description="How alpha is reached in training")


class ProjectionsConfig(TrainingConfig):
    """Attention projections into MLPs, by imitation (section 3.5)."""

    maps: Annotated[
        list[ProjectionRole],
        Field(min_length=1, description="Which projections are replaced"),
        distinct("a projection"),
    ] = ["q", "k", "v", "o"]
    factor: float = Field(1.0, gt=0, description="Cost of an MLP relative to its projection")
    multiple: int = Field(
        8, gt=0, description="Hidden widths are rounded to a multiple of it: expert sizes divide it"
    )
    alpha: float = Field(0.001, ge=0, description="Weight of the sparsity penalty, rising linearly")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout rate of the hidden neurons")


class ClusteringConfig(Strict):
    """The clustering of each FFN's neurons into experts (section 3.2)."""

    method: ClusteringMethod = Field(
        "kmeans", description="kmeans: balanced; the others: ablations"
    )
    expert_size: Annotated[int, COMPLETED] = Field(
        gt=0, description="Hidden neurons per expert; must divide d_ff"
    )
    projection_expert_size: int | None = Field(
        None, gt=0, description="Hidden neurons per expert of an attention projection's MLP"
    )


class RouterConfig(TrainingConfig):
    """The routers (section 3.3); classification is MoEfication's."""

    kind: RouterKindName = Field("regression", description="Predicts norms, or whether to run")
    width: Annotated[int, COMPLETED] = Field(gt=0, description="Hidden width h of a router")
    projection_width: int | None = Field(
        None, gt=0, description="Hidden width of an attention projection's router"
    )


class TuneConfig(TaskTrainingConfig):
    """Fine-tuning of the routed model: ours, not the paper's."""

    tau: tuple[Tau, Tau] = Field(
        strict=False, description="The τ of each step is drawn evenly from between these"
    )
    router_weight: float = Field(
        1.0, ge=0, description="Weight of the routers' own loss, on which they learn on"
    )

    @field_validator("tau")
    @classmethod
    def _ordered(cls, tau: tuple[float, float]) -> tuple[float, float]:
        if tau[0] > tau[1]:
            raise ValueError("must name the smaller τ first")
        return tau
