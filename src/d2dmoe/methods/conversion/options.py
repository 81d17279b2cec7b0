"""Options of conversions into experts, D2DMoE's and MoEfication's."""

from collections import ChainMap
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from d2dmoe.config.compression import QuantizedWeights
from d2dmoe.config.named import OneOf
from d2dmoe.config.stages import (
    ClusteringMethod,
    PenaltyMode,
    ProjectionRole,
    RouterKindName,
    Schedule,
    Tau,
)
from d2dmoe.config.strict import Name, Strict
from d2dmoe.config.variant import Variant
from d2dmoe.methods import CONVERSION_KNOBS
from d2dmoe.selection_rules import RULES

KnobName = Annotated[str, OneOf(ChainMap(CONVERSION_KNOBS, RULES), "selection rule")]


class SparsifyChange(Strict):
    """What a variant may change in sparsification."""

    mode: PenaltyMode | None = None
    alpha: float | None = Field(None, ge=0)
    schedule: Schedule | None = None
    epochs: float | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)


class ProjectionsChange(Strict):
    """What a variant may change in the conversion of attention projections."""

    maps: list[ProjectionRole] | None = Field(None, min_length=1)
    factor: float | None = Field(None, gt=0)
    alpha: float | None = Field(None, ge=0)
    epochs: float | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)


class ClusteringChange(Strict):
    """What a variant may change in the clustering."""

    method: ClusteringMethod | None = None
    expert_size: int | None = Field(None, gt=0)
    projection_expert_size: int | None = Field(None, gt=0)


class RouterChange(Strict):
    """What a variant may change in the routers."""

    kind: RouterKindName | None = None
    width: int | None = Field(None, gt=0)
    projection_width: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)


class TuneChange(Strict):
    """What a variant may change in the fine-tuning of the routed model."""

    tau: tuple[Tau, Tau] | None = Field(None, strict=False)
    router_weight: float | None = Field(None, ge=0)
    epochs: float | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)


class ConversionVariant(Variant):
    """The dense model converted into experts."""

    rule: ClassVar[str] = "dynamic_k"  # unless `select` says otherwise
    implied: ClassVar[dict[str, dict[str, Any]]] = {}  # by stage: what the method itself changes

    base: Name | None = Field(
        None, description="Which of `bases` is converted; null: the dense model"
    )
    projections: ProjectionsChange | None = Field(
        None, description="Convert attention projections too, with these changes; {}: with none"
    )
    sparsify: SparsifyChange = SparsifyChange()
    clustering: ClusteringChange = ClusteringChange()
    router: RouterChange = RouterChange()
    tune: TuneChange | None = Field(
        None, description="Fine-tune the routed model too, with these changes; {}: with none"
    )
    select: KnobName | None = Field(
        None, description="Selection rule, budgets or true norms; default: the method's own rule"
    )
    quantize: QuantizedWeights | None = Field(
        None, description="Quantise the converted model's weights; null: leave them as they are"
    )


class D2DMoEVariant(ConversionVariant):
    """Sparsified, clustered, routed by predicted norms, dynamic-k."""

    method: Literal["d2dmoe"] = Field(description="The paper's method")

    @model_validator(mode="after")
    def _is_the_papers(self):
        ours = {
            "router.kind": self.router.kind == "root_regression",
            "tune": self.tune is not None,
            "select": self.select in ("layer_budget", "true_norms"),
        }
        if found := [key for key, is_ours in ours.items() if is_ours]:
            raise ValueError(f"{found[0]} is none of the paper's: give the method extended")
        return self


class ExtendedVariant(ConversionVariant):
    """D2DMoE with changes of ours, which its paper does not have."""

    method: Literal["extended"] = Field(description="The paper's method with changes of ours")


class MoEficationVariant(ConversionVariant):
    """No penalty, routed by classification, static top-k (arXiv 2110.01786)."""

    rule = "top_k"
    implied = {"sparsify": {"alpha": 0.0}, "router": {"kind": "classification"}}

    method: Literal["moefication"] = Field(
        description="No penalty, classification router, static top-k"
    )

    @model_validator(mode="after")
    def _is_itself(self):
        if self.sparsify.alpha not in (None, 0.0):
            raise ValueError("moefication has no penalty: leave sparsify.alpha out")
        if self.router.kind not in (None, self.implied["router"]["kind"]):
            raise ValueError("moefication routes by classification: leave router.kind out")
        return self
