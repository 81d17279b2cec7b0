"""One experiment of the paper: data, dense model, stages, and the variants that are compared."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from d2dmoe.config.avit import AViTTrainingConfig
from d2dmoe.config.compression import BaseConfig
from d2dmoe.config.data import DataConfig
from d2dmoe.config.downstream import BoolQConfig
from d2dmoe.config.figures import FiguresConfig, Name
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.stages import (
    ProjectionsConfig,
    Rate,
    RouterConfig,
    SelectConfig,
    SparsifyConfig,
    SplitConfig,
    ZTWConfig,
)
from d2dmoe.config.strict import Strict
from d2dmoe.config.training import TrainingConfig
from d2dmoe.config.variants import (
    DENSE_VARIANTS,
    FINETUNED,
    ConversionVariant,
    QuantizedVariant,
    Stages,
    VariantConfig,
)
from d2dmoe.plan.checks import check_task

Suite = Literal["main", "ablations", "compatibility"]
SUITES = get_args(Suite)
"""What can be asked for apart: `snakemake all` makes the first."""


class FinetuneConfig(Strict):
    """The dense reference's extra training, as long as all of a conversion's stages together."""

    lr: Rate | None = Field(None, description="Peak learning rate; null: that of sparsify")


class SuiteConfig(Strict):
    """Variants and figures that a target of their own makes."""

    variants: dict[Name, VariantConfig] = Field(min_length=1, description="Beside the task's own")
    figures: FiguresConfig = Field(description="They may name the task's own variants too")


class TaskConfig(Strict):
    """One experiment of the paper: data, dense model, stages and the variants to run."""

    data: DataConfig
    model: ModelConfig
    dense: TrainingConfig
    finetune: FinetuneConfig = FinetuneConfig()
    bases: dict[Name, BaseConfig] = Field(
        {}, description="Compressed models, by name, that variants convert instead of the dense one"
    )
    projections: ProjectionsConfig | None = Field(None, description="Of variants that convert them")
    sparsify: SparsifyConfig
    split: SplitConfig
    router: RouterConfig
    ztw: ZTWConfig | None = Field(None, description="Of variants with the method ztw")
    avit: AViTTrainingConfig | None = Field(None, description="Of variants with the method avit")
    select: SelectConfig
    eval_batch_size: int = Field(250, gt=0, description="Samples per evaluation step")
    variants: dict[Name, VariantConfig] = Field(min_length=1)
    figures: FiguresConfig
    ablations: SuiteConfig | None = Field(None, description="Made by `snakemake ablations`")
    compatibility: SuiteConfig | None = Field(
        None, description="Made by `snakemake compatibility`: pruned, quantised, distilled models"
    )
    tuning: dict[Name, list[Rate]] = Field(
        {}, description="Learning rates tried, by variant; `snakemake tuning` repeats the trials"
    )
    boolq: BoolQConfig | None = Field(None, description="Table 1: BoolQ at compute budgets")

    @property
    def suites(self) -> dict[str, SuiteConfig]:
        """The suites beside the main one that the task has a part in."""
        named = {suite: getattr(self, suite) for suite in SUITES[1:]}
        return {suite: own for suite, own in named.items() if own}

    @property
    def all_variants(self) -> dict[str, VariantConfig]:
        """The variants of all suites, by name."""
        return self.variants | {
            k: v for own in self.suites.values() for k, v in own.variants.items()
        }

    @property
    def epochs(self) -> float:
        """Passes over the data that every variant is trained for after the dense model."""
        return round(self.sparsify.epochs + self.router.epochs, 10)

    @property
    def labels(self) -> dict[str, str]:
        """Names in the legends of all that has a curve or a point of its own."""
        bases = {name: base.label for name, base in self.bases.items()}
        trained_on = {f"{name}{FINETUNED}": f"{label}, fine-tuned" for name, label in bases.items()}
        variants = {name: variant.label for name, variant in self.all_variants.items()}
        return DENSE_VARIANTS | bases | trained_on | variants

    def figures_of(self, suite: Suite) -> FiguresConfig | None:
        """What a suite draws, or None if the task has no part in it."""
        if suite == "main":
            return self.figures
        return self.suites[suite].figures if suite in self.suites else None

    def variants_of(self, suite: Suite) -> list[str]:
        """The variants that a suite runs: its own, and those that its figures compare with."""
        if suite == "main":
            return list(self.variants)
        if suite not in self.suites:
            return []
        own = self.suites[suite]
        named = {name for names in own.figures.variants().values() for name in names}
        return [name for name in self.variants if name in named] + list(own.variants)

    def bases_of(self, suite: Suite) -> list[str]:
        """The compressed models that a suite's variants convert, or its figures compare."""
        used = {getattr(self.all_variants[name], "base", None) for name in self.variants_of(suite)}
        if suite in self.suites:
            named = self.suites[suite].figures.variants().values()
            used |= {name for names in named for name in names}
        return [name for name in self.bases if name in used]

    def stages(self, variant: str) -> Stages:
        """A conversion's stages: the task's own with the method's and the variant's changes."""
        return Stages.of(
            self.all_variants[variant], self.projections, self.sparsify, self.split, self.router
        )

    def rule(self, variant: str) -> str:
        """The knob of a variant's operating points: a selection rule, confidence, depth; or dense,
        for there is one point."""
        cfg = self.all_variants[variant]
        if isinstance(cfg, ConversionVariant):
            return self.stages(variant).rule
        return {"ztw": "confidence", "avit": "depth", "quantized": "dense"}[cfg.method]

    def finetune_config(self) -> TrainingConfig:
        """The extra training of a dense model: with the options of the sparsification, but as long
        as all of a conversion's stages together."""
        options = {key: getattr(self.sparsify, key) for key in TrainingConfig.model_fields}
        lr = self.finetune.lr or self.sparsify.lr
        return TrainingConfig(**options | {"epochs": self.epochs, "lr": lr})

    def rate(self, variant: str) -> float:
        """Peak learning rate of a variant's, or a compressed model's, longest training after the
        dense model; 0 if it has none."""
        if variant in self.bases:
            return self.bases[variant].lr
        if variant in DENSE_VARIANTS or variant not in self.all_variants:  # a base, trained on
            return self.finetune_config().lr
        cfg = self.all_variants[variant]
        if isinstance(cfg, QuantizedVariant):
            return 0.0
        if isinstance(cfg, ConversionVariant):
            return self.stages(variant).sparsify.lr
        return getattr(self, cfg.method).lr

    @model_validator(mode="after")
    def _possible(self):
        check_task(self)
        return self
