"""Options of the paper's stages between the dense model and the evaluation."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from d2dmoe.config.base import Strict
from d2dmoe.config.training import TrainingConfig

PenaltyMode = Literal["relu_hoyer", "relu_l1", "gelu_clamped", "gelu_hoyer_clamped"]
Schedule = Literal["constant", "linear", "linear_warmup"]
SplitMethod = Literal["kmeans", "random", "contiguous"]
RouterKind = Literal["regression", "classification"]
Rule = Literal["dynamic_k", "top_k", "coverage"]

Share = Annotated[float, Field(ge=0, le=1)]


class SparsifyConfig(TrainingConfig):
    """Sparsity enforcement (paper section 3.1)."""

    mode: PenaltyMode = Field(description="What is penalised, and whether GELU becomes ReLU")
    alpha: float = Field(ge=0, description="Weight of the sparsity penalty; 0: none")
    schedule: Schedule = Field("linear_warmup", description="How alpha is reached in training")


class SplitConfig(Strict):
    """The split of each FFN into experts (section 3.2)."""

    method: SplitMethod = Field("kmeans", description="kmeans: balanced; the others: ablations")
    expert_size: int = Field(gt=0, description="Hidden neurons per expert; must divide d_ff")


class RouterConfig(TrainingConfig):
    """The routers (section 3.3); classification is MoEfication's."""

    kind: RouterKind = Field("regression", description="Predicts norms, or whether to run")
    width: int = Field(gt=0, description="Hidden width h of a router")


class SelectConfig(Strict):
    """Operating points of each selection rule; one evaluation measures all of a rule."""

    dynamic_k: list[Share] = Field(min_length=1, description="Thresholds tau in [0, 1]")
    top_k: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="Experts a token")
    coverage: list[Share] = Field(min_length=1, description="Shares p of the predicted norms")

    @field_validator("dynamic_k", "top_k", "coverage")
    @classmethod
    def _distinct(cls, values: list) -> list:
        if len(set(values)) != len(values):
            raise ValueError("must not repeat an operating point")
        return values


class SparsifyChange(Strict):
    """What a variant may change in sparsification."""

    mode: PenaltyMode | None = None
    alpha: float | None = Field(None, ge=0)
    schedule: Schedule | None = None
    epochs: float | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)


class SplitChange(Strict):
    """What a variant may change in the split."""

    method: SplitMethod | None = None
    expert_size: int | None = Field(None, gt=0)


class RouterChange(Strict):
    """What a variant may change in the routers."""

    kind: RouterKind | None = None
    width: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)


class VariantConfig(Strict):
    """One composition to run: a method, and how it differs from the task's stages."""

    method: Literal["d2dmoe", "moefication"] = Field(
        description="moefication: no penalty, classification router, static top-k"
    )
    label: str = Field(min_length=1, description="Name in the legends")
    sparsify: SparsifyChange = SparsifyChange()
    split: SplitChange = SplitChange()
    router: RouterChange = RouterChange()
    select: Rule | None = Field(None, description="Selection rule; default: the method's own")

    @model_validator(mode="after")
    def _method_is_itself(self):
        if self.method == "moefication":
            if self.sparsify.alpha not in (None, 0.0):
                raise ValueError("moefication has no penalty: leave sparsify.alpha out")
            if self.router.kind not in (None, "classification"):
                raise ValueError("moefication routes by classification: leave router.kind out")
        return self
