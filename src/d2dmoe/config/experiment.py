"""The whole configuration: tasks, variants, seeds; checked before any job starts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from d2dmoe.config.avit import AViTConfig
from d2dmoe.config.base import Strict
from d2dmoe.config.data import DataConfig, check_source
from d2dmoe.config.downstream import BoolQConfig, check_boolq
from d2dmoe.config.explain import explain
from d2dmoe.config.figures import FiguresConfig, Name
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.stages import (
    ProjectionsConfig,
    RouterConfig,
    SelectConfig,
    SparsifyConfig,
    SplitConfig,
    ZTWConfig,
)
from d2dmoe.config.training import TrainingConfig
from d2dmoe.config.variants import ConversionVariant, Stages, VariantConfig
from d2dmoe.errors import ConfigError

RESERVED = ("dense", "dense_finetuned")  # the variants that every task has

Suite = Literal["main", "ablations"]
SUITES = get_args(Suite)
"""What can be asked for apart: `snakemake all` makes the first."""


class SuiteConfig(Strict):
    """Variants and figures that a target of their own makes."""

    variants: dict[Name, VariantConfig] = Field(min_length=1, description="Beside the task's own")
    figures: FiguresConfig = Field(description="They may name the task's own variants too")


class TaskConfig(Strict):
    """One experiment of the paper: data, dense model, stages and the variants to run."""

    data: DataConfig
    model: ModelConfig
    dense: TrainingConfig
    projections: ProjectionsConfig | None = Field(None, description="Of variants that convert them")
    sparsify: SparsifyConfig
    split: SplitConfig
    router: RouterConfig
    ztw: ZTWConfig | None = Field(None, description="Of variants with the method ztw")
    avit: AViTConfig | None = Field(None, description="Of variants with the method avit")
    select: SelectConfig
    eval_batch_size: int = Field(250, gt=0, description="Samples per evaluation step")
    variants: dict[Name, VariantConfig] = Field(min_length=1)
    figures: FiguresConfig
    ablations: SuiteConfig | None = Field(None, description="Made by `snakemake ablations`")
    boolq: BoolQConfig | None = Field(None, description="Table 1: BoolQ at compute budgets")

    @property
    def all_variants(self) -> dict[str, VariantConfig]:
        """The variants of all suites, by name."""
        return self.variants | (self.ablations.variants if self.ablations else {})

    @property
    def epochs(self) -> float:
        """Passes over the data that every variant is trained for after the dense model."""
        return round(self.sparsify.epochs + self.router.epochs, 10)

    def figures_of(self, suite: Suite) -> FiguresConfig | None:
        """What a suite draws, or None if the task has no part in it."""
        if suite == "main":
            return self.figures
        return self.ablations.figures if self.ablations else None

    def variants_of(self, suite: Suite) -> list[str]:
        """The variants that a suite runs: its own, and those that its figures compare with."""
        if suite == "main":
            return list(self.variants)
        if self.ablations is None:
            return []
        named = {name for names in self.ablations.figures.variants().values() for name in names}
        return [name for name in self.variants if name in named] + list(self.ablations.variants)

    def stages(self, variant: str) -> Stages:
        """A conversion's stages: the task's own with the method's and the variant's changes."""
        return Stages.of(
            self.all_variants[variant], self.projections, self.sparsify, self.split, self.router
        )

    def rule(self, variant: str) -> str:
        """The knob of a variant's operating points: a selection rule, confidence or depth."""
        cfg = self.all_variants[variant]
        if isinstance(cfg, ConversionVariant):
            return self.stages(variant).rule
        return {"ztw": "confidence", "avit": "depth"}[cfg.method]

    @model_validator(mode="after")
    def _possible(self):
        self._check_data()
        for name, variant in self.all_variants.items():
            if name in RESERVED:
                raise ValueError(f"variants.{name}: the name is taken by the dense reference")
            self._check_variant(name, variant)
        if self.ablations and (twice := self.variants.keys() & self.ablations.variants.keys()):
            raise ValueError(f"ablations.variants repeats names of variants: {sorted(twice)}")
        if not self.figures.tradeoff:
            raise ValueError("figures.tradeoff is missing: name the variants of figure 4")
        self._check_figures("figures", self.figures, self.variants)
        if self.ablations:
            if self.ablations.figures.load_maps:
                raise ValueError("ablations.figures.load_maps: load maps belong into figures")
            self._check_figures("ablations.figures", self.ablations.figures, self.all_variants)
        self._check_boolq()
        return self

    def _check_figures(self, place: str, figures: FiguresConfig, allowed: dict) -> None:
        for key, names in figures.variants().items():
            for name in names:
                if name not in allowed:
                    raise ValueError(
                        f"{place}.{key} names the variant '{name}'; defined: {list(allowed)}"
                    )
        for key in ("layers", "layer_thresholds"):
            if layers := getattr(figures, key):
                self._check_values(f"{place}.{key}.values", layers.variants, layers.values)
        if maps := figures.load_maps:
            if self.data.kind != "images":
                raise ValueError(f"{place}.load_maps needs images: leave it out")
            self._check_values(f"{place}.load_maps.value", [maps.variant], [maps.value])

    def _check_boolq(self) -> None:
        if self.boolq and self.data.kind != "corpus":
            raise ValueError("boolq needs a language model, with data.kind corpus: leave it out")
        for name in self.boolq.variants if self.boolq else []:
            if not isinstance(self.variants.get(name), ConversionVariant):
                raise ValueError(
                    f"boolq.variants names the variant '{name}'; defined: {list(self.variants)}"
                )

    def _check_data(self) -> None:
        if self.data.kind != self.model.data_kind:
            raise ValueError(
                f"model.architecture {self.model.architecture} takes data of the kind "
                f"{self.model.data_kind}, but data.kind is {self.data.kind}"
            )
        if self.data.kind == "images":
            self._check_grid()
            return
        if self.data.length > self.model.positions:
            raise ValueError(
                f"data.length = {self.data.length} tokens exceeds model.positions = "
                f"{self.model.positions}, the longest sequence of the model"
            )
        for stage in ("dense", "sparsify", "router"):
            self._check_no_image_options(stage, getattr(self, stage))

    def _check_no_image_options(self, stage: str, cfg: TrainingConfig) -> None:
        for key in ("augment", "mixup", "cutmix"):
            if getattr(cfg, key) != TrainingConfig.model_fields[key].default:
                raise ValueError(f"{stage}.{key} changes images; data.kind is {self.data.kind}")

    def _check_values(self, key: str, variants: list[str], values: list[float]) -> None:
        for variant in variants:
            rule = self.rule(variant)
            if not isinstance(self.all_variants[variant], ConversionVariant):
                raise ValueError(f"{key}: the variant '{variant}' has no experts; leave it out")
            measured = getattr(self.select, rule)
            for value in values:
                if value not in measured:
                    raise ValueError(
                        f"{key}: {value} is no operating point of the variant '{variant}'; "
                        f"allowed are those of select.{rule}: {measured}"
                    )

    def _check_grid(self) -> None:
        side, patch = self.data.image_size, self.model.patch_size
        if side % patch:
            divisors = [i for i in range(1, side + 1) if side % i == 0]
            raise ValueError(
                f"model.patch_size = {patch} must divide data.image_size = {side}; "
                f"allowed: {divisors}"
            )
        grid = side
        for _ in self.model.stem:
            grid = (grid + 1) // 2
        if self.model.stem and grid != side // patch:
            raise ValueError(
                f"model.stem has {len(self.model.stem)} convolutions, which make {side} pixels a "
                f"grid of {grid}; model.patch_size = {patch} needs a grid of {side // patch}"
            )

    def _check_variant(self, name: str, variant: VariantConfig) -> None:
        if isinstance(variant, ConversionVariant):
            self._check_conversion(name, variant)
            return
        own = getattr(self, variant.method)
        if own is None:
            raise ValueError(f"variant '{name}': the task has no section {variant.method}")
        if variant.method == "avit" and self.model.architecture != "vit":
            raise ValueError(f"variant '{name}': avit halts the tokens of images; leave it out")
        if variant.method == "ztw":
            if self.data.kind == "corpus":
                raise ValueError(f"variant '{name}': ztw needs a classifier; leave it out")
            if not self.select.confidence:
                raise ValueError(f"variant '{name}': select.confidence is missing")
        self._check_epochs(name, own.epochs, f"{variant.method}.epochs")

    def _check_conversion(self, name: str, variant: ConversionVariant) -> None:
        if variant.projections is not None and self.projections is None:
            raise ValueError(f"variant '{name}': the task has no section projections")
        stages = self.stages(name)
        d_ff, size = self.model.d_ff, stages.split.expert_size
        if d_ff % size:
            divisors = [i for i in range(1, d_ff + 1) if d_ff % i == 0]
            raise ValueError(
                f"variant '{name}': split.expert_size = {size} must divide model.d_ff = {d_ff}; "
                f"allowed: {divisors}"
            )
        if stages.rule == "top_k" and max(self.select.top_k) > d_ff // size:
            raise ValueError(
                f"variant '{name}': select.top_k = {max(self.select.top_k)} exceeds its "
                f"{d_ff // size} experts; allowed: 1 to {d_ff // size}"
            )
        if stages.projections:
            self._check_projections(name, stages)
        self._check_epochs(name, stages.epochs, "projections + sparsify + router epochs")

    def _check_projections(self, name: str, stages: Stages) -> None:
        size, multiple = stages.split.projection_expert_size, stages.projections.multiple
        if size is None or stages.router.projection_width is None:
            raise ValueError(
                f"variant '{name}' converts attention projections: give "
                "split.projection_expert_size and router.projection_width"
            )
        if multiple % size:
            raise ValueError(
                f"variant '{name}': split.projection_expert_size = {size} must divide "
                f"projections.multiple = {multiple}"
            )
        if stages.rule == "top_k":
            raise ValueError(
                f"variant '{name}': top_k selects as many experts in every layer, and attention "
                "projections have fewer; use dynamic_k or coverage"
            )

    def _check_epochs(self, name: str, own: float, key: str) -> None:
        if not math.isclose(own, self.epochs):
            raise ValueError(
                f"variant '{name}': {key} = {own:g}, but the task's sparsify.epochs + "
                f"router.epochs is {self.epochs:g}; every variant must get the same number of steps"
            )


class RuntimeConfig(Strict):
    """How jobs run; never changes a result."""

    save_every_s: float = Field(60.0, ge=0, description="Seconds between saved training states")
    log_every_s: float = Field(10.0, ge=0, description="Seconds between progress lines")


class Config(Strict):
    """The experiment that `snakemake all` runs."""

    # Not strict: snakemake's --config seeds='[0,1]' gives the numbers in a list as text.
    seeds: list[Annotated[int, Field(ge=0, strict=False)]] = Field(
        min_length=1, description="One run each"
    )
    runtime: RuntimeConfig = RuntimeConfig()
    tasks: dict[Name, TaskConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct_names(self):
        for name in SUITES:
            if name in self.tasks:
                raise ValueError(f"tasks.{name}: the name is a target's; call the task otherwise")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {self.seeds} has repetitions; each must be given once")
        return self


def load_config(raw: Mapping[str, Any], root: Path) -> Config:
    """Check a configuration; `root` is the repository, where `resources/` lies.

    Raises:
        ConfigError: one message with a line for every fault: key, value, what is allowed.
        DataError: a task's dataset is not there.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError("the configuration is empty; it needs the keys seeds and tasks")
    try:
        config = Config.model_validate(dict(raw))
    except ValidationError as error:
        lines = [explain(fault, Config) for fault in error.errors()]
        raise ConfigError("the configuration is wrong:\n  " + "\n  ".join(lines)) from None
    for task in config.tasks.values():
        check_source(task.data, root)
        if task.boolq:
            check_boolq(task.boolq, root)
    return config
