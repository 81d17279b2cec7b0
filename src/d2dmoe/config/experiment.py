"""The whole configuration: tasks, variants, seeds; checked before any job starts."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from d2dmoe.config.base import Strict
from d2dmoe.config.data import DataConfig, check_source
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.stages import (
    RouterConfig,
    SelectConfig,
    SparsifyConfig,
    SplitConfig,
    VariantConfig,
)
from d2dmoe.config.training import TrainingConfig
from d2dmoe.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*$")]  # names folders


FigureKey = Literal[
    "tradeoff", "sparsity_levels", "active_neurons", "selection_rules", "layers", "expert_sizes"
]
RESERVED = ("dense", "dense_finetuned")  # the variants that every task has


class LoadMapsConfig(Strict):
    """Figure 8b: executed experts per patch of test images."""

    variant: Name = Field(description="Which variant routes")
    value: float = Field(ge=0, description="Its operating point (tau, k or p)")
    images: int = Field(8, gt=0, description="Test images drawn")
    foreground: bool = Field(
        False, description="The background is black, so what is not black is the object"
    )


class FiguresConfig(Strict):
    """Which variants each figure of the task compares, in the legend's order."""

    tradeoff: list[Name] = Field(min_length=1, description="Figure 4: cost against quality")
    sparsity_levels: list[Name] = Field(min_length=1, description="Figure 2a: alphas")
    active_neurons: list[Name] = Field(min_length=1, description="Figure 2b: histograms")
    selection_rules: list[Name] = Field(min_length=1, description="Figure 2c: selection rules")
    layers: list[Name] = Field(min_length=1, description="Figure 8a: experts per layer")
    layer_values: list[float] = Field(min_length=1, description="Figure 8a: operating points")
    load_maps: LoadMapsConfig
    expert_sizes: list[Name] = Field(min_length=1, description="Figure 9d: expert sizes")
    labels: dict[FigureKey, dict[Name, str]] = Field(
        {}, description="By figure: names in its legend where they differ from the variants' own"
    )

    def variants(self) -> dict[str, list[str]]:
        """The variants that each figure names, by the figure's key."""
        lists = {key: value for key, value in self if isinstance(value, list)}
        del lists["layer_values"]
        named = {f"labels.{key}": list(names) for key, names in self.labels.items()}
        return lists | named | {"load_maps.variant": [self.load_maps.variant]}


class TaskConfig(Strict):
    """One experiment of the paper: data, dense model, stages and the variants to run."""

    data: DataConfig
    model: ModelConfig
    dense: TrainingConfig
    sparsify: SparsifyConfig
    split: SplitConfig
    router: RouterConfig
    select: SelectConfig
    eval_batch_size: int = Field(250, gt=0, description="Samples per evaluation step")
    variants: dict[Name, VariantConfig] = Field(min_length=1)
    figures: FiguresConfig

    def stages(self, variant: str) -> "Stages":
        """The variant's stages: the task's own with the method's and the variant's changes."""
        return Stages.of(self, self.variants[variant])

    @model_validator(mode="after")
    def _possible(self):
        self._check_grid()
        for name in self.variants:
            if name in RESERVED:
                raise ValueError(f"variants.{name}: the name is taken by the dense reference")
            self._check_variant(name, self.stages(name))
        for key, names in self.figures.variants().items():
            for name in names:
                if name not in self.variants:
                    raise ValueError(
                        f"figures.{key} names the variant '{name}'; defined: {list(self.variants)}"
                    )
        self._check_values("layer_values", self.figures.layers, self.figures.layer_values)
        maps = self.figures.load_maps
        self._check_values("load_maps.value", [maps.variant], [maps.value])
        return self

    def _check_values(self, key: str, variants: list[str], values: list[float]) -> None:
        for variant in variants:
            rule = self.stages(variant).rule
            measured = getattr(self.select, rule)
            for value in values:
                if value not in measured:
                    raise ValueError(
                        f"figures.{key}: {value} is no operating point of the variant '{variant}'; "
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

    def _check_variant(self, name: str, stages: "Stages") -> None:
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
        total = self.sparsify.epochs + self.router.epochs
        own = stages.sparsify.epochs + stages.router.epochs
        if own != total:
            raise ValueError(
                f"variant '{name}': sparsify.epochs + router.epochs = {own}, but the task's total "
                f"is {total}; every variant must get the same number of steps"
            )


class Stages(Strict):
    """A variant's stages, resolved."""

    sparsify: SparsifyConfig
    split: SplitConfig
    router: RouterConfig
    rule: str

    @classmethod
    def of(cls, task: TaskConfig, variant: VariantConfig) -> "Stages":
        """Resolve: task's stages, then what the method implies, then the variant's changes."""
        moefication = variant.method == "moefication"
        implied_sparsify = {"alpha": 0.0} if moefication else {}
        implied_router = {"kind": "classification"} if moefication else {}

        def change(stage, implied, changes):
            return stage.model_copy(update=implied | changes.model_dump(exclude_none=True))

        return cls(
            sparsify=change(task.sparsify, implied_sparsify, variant.sparsify),
            split=change(task.split, {}, variant.split),
            router=change(task.router, implied_router, variant.router),
            rule=variant.select or ("top_k" if moefication else "dynamic_k"),
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
    def _distinct_seeds(self):
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
        lines = [_explain(fault) for fault in error.errors()]
        raise ConfigError("the configuration is wrong:\n  " + "\n  ".join(lines)) from None
    for task in config.tasks.values():
        check_source(task.data.source, root)
    return config


def _explain(fault: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        allowed = _allowed_keys(fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), allowed, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{key} = {value!r}: unknown key{hint} (allowed keys: {', '.join(allowed)})"
    if fault["type"] == "missing":
        return f"{key}: missing; it is required"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(value, Mapping):  # a check over several keys, whose message names them
        return f"{key or 'the configuration'}: {message}"
    if fault["type"] == "float_type" and isinstance(value, str) and _is_number(value):
        message += f" (YAML reads {value} as text: write {float(value)})"
    return f"{key} = {value!r}: {message}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _allowed_keys(location: tuple) -> list[str]:
    """The fields of the model at a location in the configuration."""
    kind: Any = Config
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation
        else:  # dict[Name, Model] or list[Model]
            kind = get_args(kind)[-1]
    return sorted(kind.model_fields)
