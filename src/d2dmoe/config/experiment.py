"""The whole configuration: tasks, variants, seeds; checked before any job starts."""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from d2dmoe.config.base import Strict
from d2dmoe.config.data import DataConfig, check_source
from d2dmoe.config.downstream import BoolQConfig, check_boolq
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
    "tradeoff",
    "base_sparsity",
    "active_neurons",
    "selection_rules",
    "layers",
    "layer_thresholds",
    "sparsity_levels",
    "activations",
    "expert_sizes",
]
RESERVED = ("dense", "dense_finetuned")  # the variants that every task has


class LayersConfig(Strict):
    """Figures 8a and 16: executed experts per layer."""

    variants: list[Name] = Field(min_length=1, description="Compared in each panel")
    values: list[float] = Field(min_length=1, description="Operating points, a panel each")


class LoadMapsConfig(Strict):
    """Figure 8b: executed experts per patch of test images."""

    variant: Name = Field(description="Which variant routes")
    value: float = Field(ge=0, description="Its operating point (tau, k or p)")
    images: int = Field(8, gt=0, description="Test images drawn")
    foreground: bool = Field(
        False, description="The background is black, so what is not black is the object"
    )


Variants = list[Name]


class FiguresConfig(Strict):
    """Which variants each figure of the task compares, in the legend's order; a figure that is left
    out is not drawn."""

    tradeoff: Variants = Field(min_length=1, description="Figure 4: cost against quality")
    base_sparsity: Variants = Field([], description="Figure 2a: bases of different sparsity")
    active_neurons: Variants = Field([], description="Figure 2b: histograms")
    selection_rules: Variants = Field([], description="Figure 2c: selection rules")
    layers: LayersConfig | None = Field(None, description="Figure 8a: base models compared")
    load_maps: LoadMapsConfig | None = Field(None, description="Figure 8b: load maps of images")
    sparsity_levels: Variants = Field([], description="Figure 9b: alphas")
    activations: Variants = Field([], description="Figure 9c: ReLU or GELU")
    expert_sizes: Variants = Field([], description="Figure 9d: expert sizes")
    layer_thresholds: LayersConfig | None = Field(None, description="Figure 16: thresholds")
    labels: dict[FigureKey, dict[Name, str]] = Field(
        {}, description="By figure: names in its legend where they differ from the variants' own"
    )

    def variants(self) -> dict[str, list[str]]:
        """The variants that each figure names, by the figure's key."""
        named = {f"labels.{key}": list(names) for key, names in self.labels.items()}
        if self.load_maps:
            named["load_maps.variant"] = [self.load_maps.variant]
        for key, value in self:
            if isinstance(value, LayersConfig):
                named[f"{key}.variants"] = value.variants
            elif isinstance(value, list):
                named[key] = value
        return named


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
    boolq: BoolQConfig | None = Field(None, description="Table 1: BoolQ at compute budgets")

    def stages(self, variant: str) -> "Stages":
        """The variant's stages: the task's own with the method's and the variant's changes."""
        return Stages.of(self, self.variants[variant])

    @model_validator(mode="after")
    def _possible(self):
        self._check_data()
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
        for key in ("layers", "layer_thresholds"):
            if layers := getattr(self.figures, key):
                self._check_values(f"{key}.values", layers.variants, layers.values)
        if maps := self.figures.load_maps:
            if self.data.kind != "images":
                raise ValueError("figures.load_maps needs images: leave it out")
            self._check_values("load_maps.value", [maps.variant], [maps.value])
        self._check_boolq()
        return self

    def _check_boolq(self) -> None:
        if self.boolq and self.data.kind != "corpus":
            raise ValueError("boolq needs a language model, with data.kind corpus: leave it out")
        for name in self.boolq.variants if self.boolq else []:
            if name not in self.variants:
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
        if not math.isclose(own, total):
            raise ValueError(
                f"variant '{name}': sparsify.epochs + router.epochs = {own:g}, but the task's "
                f"total is {total:g}; every variant must get the same number of steps"
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
        check_source(task.data, root)
        if task.boolq:
            check_boolq(task.boolq, root)
    return config


def _explain(fault: Mapping[str, Any]) -> str:
    names, _ = _walk(fault["loc"])
    key = ".".join(names)
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        allowed = sorted(_walk(fault["loc"][:-1])[1].model_fields)
        close = difflib.get_close_matches(str(fault["loc"][-1]), allowed, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{key} = {value!r}: unknown key{hint} (allowed keys: {', '.join(allowed)})"
    if fault["type"] == "missing":
        return f"{key}: missing; it is required"
    if fault["type"] == "union_tag_not_found":
        return f"{key}.{_tag_key(fault)}: missing; allowed: {_allowed_tags(fault)}"
    if fault["type"] == "union_tag_invalid":
        tag = fault["ctx"]["tag"]
        return f"{key}.{_tag_key(fault)} = {tag!r}: allowed are {_allowed_tags(fault)}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(value, Mapping):  # a check over several keys, whose message names them
        return f"{key or 'the configuration'}: {message}"
    if fault["type"] == "float_type" and isinstance(value, str) and _is_number(value):
        message += f" (YAML reads {value} as text: write {float(value)})"
    return f"{key} = {value!r}: {message}"


def _tag_key(fault: Mapping[str, Any]) -> str:
    return fault["ctx"]["discriminator"].strip("'")


def _allowed_tags(fault: Mapping[str, Any]) -> str:
    return ", ".join(_members(_walk(fault["loc"])[1]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _walk(location: tuple) -> tuple[list[str], Any]:
    """The keys of a fault's location as the user wrote them, and the type of what lies there.

    Models that are told apart by a kind or an architecture add that to pydantic's locations.
    """
    names, kind = [], Config
    for part in location:
        if (members := _members(kind)) and part in members:
            kind = members[part]
            continue
        names.append(str(part))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation if part in kind.model_fields else None
        else:  # dict[Name, Model], list[Model] or Model | None
            kind = next((k for k in reversed(get_args(kind)) if k is not type(None)), None)
        optional = [k for k in get_args(kind) if k is not type(None)]
        if type(None) in get_args(kind) and len(optional) == 1:
            kind = optional[0]
    return names, kind


def _members(union: Any) -> dict[str, type[BaseModel]]:
    """The models of a discriminated union by the value of the key that tells them apart."""
    found = {}
    for member in get_args(union):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for key in {"kind", "architecture"} & member.model_fields.keys():
                found[get_args(member.model_fields[key].annotation)[0]] = member
    return found
