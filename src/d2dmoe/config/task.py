"""One experiment of the paper: data, dense model, stages, and the variants that are compared."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, create_model

from d2dmoe.config.compression import BaseConfig
from d2dmoe.config.data import DataConfig
from d2dmoe.config.downstream import BoolQConfig
from d2dmoe.config.figures import FiguresConfig
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.named import Tagged
from d2dmoe.config.select import SelectConfig
from d2dmoe.config.stages import (
    ClusteringConfig,
    DenseConfig,
    ProjectionsConfig,
    Rate,
    RouterConfig,
    SparsifyConfig,
    TuneConfig,
)
from d2dmoe.config.strict import COMPLETED, Label, Name, Seeds, Strict
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.config.variant import Variant
from d2dmoe.lookup import resolve
from d2dmoe.methods import METHODS

Suite = Literal["main", "ablations", "compatibility", "neighbours"]
SUITES = get_args(Suite)
"""What can be asked for apart: `snakemake all` makes the first."""

VariantConfig = Annotated[Variant, Tagged("method", METHODS)]

Chain = list[tuple[str, Any]]
"""Stages and their options, in the order in which they are run."""


class FinetuneConfig(Strict):
    """The dense reference's extra training, as long as all of a conversion's stages together."""

    lr: Rate | None = Field(None, description="Peak learning rate; null: that of sparsify")


class SuiteConfig(Strict):
    """Variants and figures that a target of their own makes."""

    variants: dict[Name, VariantConfig] = Field(min_length=1, description="Beside the task's own")
    figures: FiguresConfig = Field(description="They may name the task's own variants too")


class _Task(Strict):
    """One experiment of the paper: data, dense model, stages and the variants to run."""

    title: Label | None = Field(
        None, description="What figures call it, as ViT on Fashion-MNIST; null: by the task's name"
    )
    seeds: Seeds | None = Field(None, description="One run each; null: those of all tasks")
    data: DataConfig
    model: ModelConfig
    dense: Annotated[TaskTrainingConfig, COMPLETED]
    finetune: FinetuneConfig = FinetuneConfig()
    bases: dict[Name, BaseConfig] = Field(
        {}, description="Compressed models, by name, that variants convert instead of the dense one"
    )
    projections: ProjectionsConfig | None = Field(None, description="Of variants that convert them")
    sparsify: Annotated[SparsifyConfig, COMPLETED]
    clustering: Annotated[ClusteringConfig, COMPLETED]
    router: Annotated[RouterConfig, COMPLETED]
    tune: TuneConfig | None = Field(None, description="Of variants whose routed model is tuned")
    select: Annotated[SelectConfig, COMPLETED]
    eval_batch_size: int = Field(250, gt=0, description="Samples per evaluation step")
    variants: Annotated[dict[Name, VariantConfig], COMPLETED] = Field(min_length=1)
    figures: Annotated[FiguresConfig, COMPLETED]
    ablations: SuiteConfig | None = Field(None, description="Made by `snakemake ablations`")
    compatibility: SuiteConfig | None = Field(
        None, description="Made by `snakemake compatibility`: pruned, quantised, distilled models"
    )
    neighbours: SuiteConfig | None = Field(
        None, description="Made by `snakemake neighbours`: methods that are close to D2DMoE"
    )
    tuning: dict[Name, list[Rate]] = Field(
        {}, description="Learning rates tried, by variant; `snakemake tuning` repeats the trials"
    )
    boolq: BoolQConfig | None = Field(None, description="Table 1: BoolQ at compute budgets")
    claims: bool | None = Field(
        None,
        description="Whether the paper's claims are judged on the task; null: where its data come "
        "with this project and its model is trained from scratch",
    )

    @property
    def judged(self) -> bool:
        """Whether the paper's claims are judged on it: they are of the paper's experiments."""
        if self.claims is not None:
            return self.claims
        return self.data.source.startswith("vendored:") and self.model.weights == "scratch"

    @property
    def suites(self) -> dict[str, SuiteConfig]:
        """The suites beside the main one that the task has a part in."""
        named = {suite: getattr(self, suite) for suite in SUITES[1:]}
        return {suite: own for suite, own in named.items() if own}

    @property
    def all_variants(self) -> dict[str, Any]:
        """The variants of all suites, by name."""
        return self.variants | {
            k: v for own in self.suites.values() for k, v in own.variants.items()
        }

    @property
    def epochs(self) -> float:
        """Passes over the data that every variant is trained for after the dense model."""
        return round(self.sparsify.epochs + self.router.epochs, 10)

    @property
    def dense_step(self) -> tuple[str, Strict]:
        """The stage that every lineage begins with, and its options."""
        return "dense", DenseConfig(**dict(self.dense), model=self.model)

    @property
    def finetune_step(self) -> tuple[str, TaskTrainingConfig]:
        """The extra training of a dense model: with the options of the sparsification, but as long
        as all of a conversion's stages together; `plan.checks` checks its rate."""
        options = {key: getattr(self.sparsify, key) for key in TaskTrainingConfig.model_fields}
        lr = self.finetune.lr or self.sparsify.lr
        changed = options | {"epochs": self.epochs, "lr": lr}
        return "finetune", TaskTrainingConfig.model_construct(**changed)

    def base_step(self, base: str) -> tuple[str, Strict]:
        """The stage that makes a compressed model, and its options."""
        cfg = self.bases[base].step
        return cfg.kind, cfg

    def figures_of(self, suite: Suite) -> Any:
        """What a suite draws, a FiguresConfig, or None if the task has no part in it."""
        if suite == SUITES[0]:
            return self.figures
        return self.suites[suite].figures if suite in self.suites else None


def _section(reference: str) -> Any:
    model = resolve(reference)
    return model | None, Field(None, description=" ".join(model.__doc__.split()))


TaskConfig = create_model(
    "TaskConfig",
    __base__=_Task,
    __doc__=_Task.__doc__,
    **{name: _section(m.section) for name, m in METHODS.items() if m.section},
)
