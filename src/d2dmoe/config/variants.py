"""The compositions that a task runs: a method, and how it differs from the task's stages."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from d2dmoe.config.compression import QuantizedWeights
from d2dmoe.config.figures import Name
from d2dmoe.config.stages import (
    PenaltyMode,
    ProjectionRole,
    ProjectionsConfig,
    RouterConfig,
    RouterKind,
    Rule,
    Schedule,
    SparsifyConfig,
    SplitConfig,
    SplitMethod,
)
from d2dmoe.config.strict import Strict

FINETUNED = "_finetuned"  # ends the name of a dense or compressed model that was trained on

DENSE_VARIANTS = {"dense": "dense", f"dense{FINETUNED}": "dense, fine-tuned"}
"""The variants that every task has, and their names in the legends."""


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


class SplitChange(Strict):
    """What a variant may change in the split."""

    method: SplitMethod | None = None
    expert_size: int | None = Field(None, gt=0)
    projection_expert_size: int | None = Field(None, gt=0)


class RouterChange(Strict):
    """What a variant may change in the routers."""

    kind: RouterKind | None = None
    width: int | None = Field(None, gt=0)
    projection_width: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, ge=0)
    lr: float | None = Field(None, gt=0)


class Variant(Strict):
    """What all variants have."""

    label: str = Field(min_length=1, description="Name in the legends")


class ConversionVariant(Variant):
    """The dense model converted into experts."""

    method: Literal["d2dmoe", "moefication"] = Field(
        description="moefication: no penalty, classification router, static top-k"
    )
    base: Name | None = Field(
        None, description="Which of `bases` is converted; null: the dense model"
    )
    projections: ProjectionsChange | None = Field(
        None, description="Convert attention projections too, with these changes; {}: with none"
    )
    sparsify: SparsifyChange = SparsifyChange()
    split: SplitChange = SplitChange()
    router: RouterChange = RouterChange()
    select: Rule | None = Field(None, description="Selection rule; default: the method's own")
    quantize: QuantizedWeights | None = Field(
        None, description="Quantise the converted model's weights; null: leave them as they are"
    )

    @model_validator(mode="after")
    def _method_is_itself(self):
        if self.method == "moefication":
            if self.sparsify.alpha not in (None, 0.0):
                raise ValueError("moefication has no penalty: leave sparsify.alpha out")
            if self.router.kind not in (None, "classification"):
                raise ValueError("moefication routes by classification: leave router.kind out")
        return self


class QuantizedVariant(Variant):
    """The dense model with quantised weights."""

    method: Literal["quantized"] = Field(description="One operating point: it costs as many FLOPs")
    quantize: QuantizedWeights


class ExitVariant(Variant):
    """ZTW: the dense model with early exits."""

    method: Literal["ztw"] = Field(description="Zero Time Waste: cascaded heads, ensembled")


class HaltingVariant(Variant):
    """A-ViT: the dense model with tokens that halt; a training for every target depth."""

    method: Literal["avit"] = Field(description="A-ViT: tokens halt by accumulated scores")
    depths: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="Target depths of the prior, in blocks; an operating point each"
    )

    @field_validator("depths")
    @classmethod
    def _distinct(cls, depths: list[float]) -> list[float]:
        if len(set(depths)) != len(depths):
            raise ValueError("must not repeat a depth")
        return depths


VariantConfig = Annotated[
    ConversionVariant | ExitVariant | HaltingVariant | QuantizedVariant,
    Field(discriminator="method"),
]


class Stages(Strict):
    """A conversion's stages, resolved."""

    projections: ProjectionsConfig | None
    sparsify: SparsifyConfig
    split: SplitConfig
    router: RouterConfig
    rule: Rule

    @property
    def epochs(self) -> float:
        """Passes over the data of all stages together."""
        imitation = self.projections.epochs if self.projections else 0.0
        return round(imitation + self.sparsify.epochs + self.router.epochs, 10)

    @classmethod
    def of(
        cls,
        variant: ConversionVariant,
        projections: ProjectionsConfig | None,
        sparsify: SparsifyConfig,
        split: SplitConfig,
        router: RouterConfig,
    ) -> "Stages":
        """Resolve: the task's stages, then what the method implies, then the variant's changes.

        Imitation of attention projections takes its passes from sparsification's.
        """
        moefication = variant.method == "moefication"
        implied_sparsify = {"alpha": 0.0} if moefication else {}
        implied_split, implied_router = {}, {"kind": "classification"} if moefication else {}
        if variant.projections is None:
            projections = None
            implied_split["projection_expert_size"] = implied_router["projection_width"] = None
        else:
            projections = _change(projections, {}, variant.projections)
            left = round(sparsify.epochs - projections.epochs, 10)
            implied_sparsify["epochs"] = max(0.0, left)
        return cls(
            projections=projections,
            sparsify=_change(sparsify, implied_sparsify, variant.sparsify),
            split=_change(split, implied_split, variant.split),
            router=_change(router, implied_router, variant.router),
            rule=variant.select or ("top_k" if moefication else "dynamic_k"),
        )


def _change(stage, implied, changes):
    return stage.model_copy(update=implied | changes.model_dump(exclude_none=True))
