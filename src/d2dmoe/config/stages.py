"""Options of the paper's stages between the dense model and the evaluation."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from d2dmoe.config.strict import Strict
from d2dmoe.config.training import TrainingConfig

PenaltyMode = Literal["relu_hoyer", "relu_l1", "gelu_clamped", "gelu_hoyer_clamped"]
Schedule = Literal["constant", "linear", "linear_warmup"]
SplitMethod = Literal["kmeans", "random", "contiguous"]
RouterKind = Literal["regression", "classification"]
ProjectionRole = Literal["q", "k", "v", "o"]
Rule = Literal["dynamic_k", "top_k", "coverage"]

Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class SparsifyConfig(TrainingConfig):
    """Sparsity enforcement (paper section 3.1)."""

    mode: PenaltyMode = Field(description="What is penalised, and whether GELU becomes ReLU")
    alpha: float = Field(ge=0, description="Weight of the sparsity penalty; 0: none")
    schedule: Schedule = Field("linear_warmup", description="How alpha is reached in training")


class ProjectionsConfig(TrainingConfig):
    """Attention projections into MLPs, by imitation (section 3.5)."""

    maps: list[ProjectionRole] = Field(
        ["q", "k", "v", "o"], min_length=1, description="Which projections are replaced"
    )
    factor: float = Field(1.0, gt=0, description="Cost of an MLP relative to its projection")
    multiple: int = Field(
        8, gt=0, description="Hidden widths are rounded to a multiple of it: expert sizes divide it"
    )
    alpha: float = Field(0.001, ge=0, description="Weight of the sparsity penalty, rising linearly")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout rate of the hidden neurons")

    @field_validator("maps")
    @classmethod
    def _distinct(cls, maps: list[str]) -> list[str]:
        if len(set(maps)) != len(maps):
            raise ValueError("must not repeat a projection")
        return maps


class SplitConfig(Strict):
    """The split of each FFN into experts (section 3.2)."""

    method: SplitMethod = Field("kmeans", description="kmeans: balanced; the others: ablations")
    expert_size: int = Field(gt=0, description="Hidden neurons per expert; must divide d_ff")
    projection_expert_size: int | None = Field(
        None, gt=0, description="Hidden neurons per expert of an attention projection's MLP"
    )


class RouterConfig(TrainingConfig):
    """The routers (section 3.3); classification is MoEfication's."""

    kind: RouterKind = Field("regression", description="Predicts norms, or whether to run")
    width: int = Field(gt=0, description="Hidden width h of a router")
    projection_width: int | None = Field(
        None, gt=0, description="Hidden width of an attention projection's router"
    )


class SelectConfig(Strict):
    """Operating points of each selection rule; one evaluation measures all of a rule."""

    dynamic_k: list[Share] = Field(min_length=1, description="Thresholds tau in [0, 1]")
    top_k: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="Experts a token")
    coverage: list[Share] = Field(min_length=1, description="Shares p of the predicted norms")
    confidence: list[Share] = Field([], description="ZTW: least probability of the class to exit")

    @field_validator("dynamic_k", "top_k", "coverage", "confidence")
    @classmethod
    def _distinct(cls, values: list) -> list:
        if len(set(values)) != len(values):
            raise ValueError("must not repeat an operating point")
        return values


class ZTWConfig(TrainingConfig):
    """The baseline ZTW (arXiv 2106.05409): early exits of the dense model, which stays frozen."""

    every: int = Field(
        1, gt=0, description="Blocks from one exit to the next; the last block has none"
    )
    width: int | None = Field(
        None, gt=0, description="Hidden neurons of a head; null: it is one linear map"
    )
