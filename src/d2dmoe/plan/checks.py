"""What a task's options must be together; each fault is a ValueError that names keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from d2dmoe.config.compression import DistillConfig, PruneConfig, remaining
from d2dmoe.config.figures import FiguresConfig
from d2dmoe.config.model import TransformerConfig, ViTConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.config.variants import (
    DENSE_VARIANTS,
    FINETUNED,
    ConversionVariant,
    QuantizedVariant,
    Stages,
    VariantConfig,
)

if TYPE_CHECKING:
    from d2dmoe.config.benchmarks import BenchmarksConfig
    from d2dmoe.config.task import TaskConfig


def check_task(task: TaskConfig) -> None:
    """Raises ValueError for the first fault found."""
    _check_data(task)
    _check_names(task)
    _check_rates(task)
    for name, variant in task.all_variants.items():
        _check_variant(task, name, variant)
    if not task.figures.tradeoff:
        raise ValueError("figures.tradeoff is missing: name the variants of figure 4")
    _check_figures(task, "figures", task.figures, list(task.variants))
    for suite, own in task.suites.items():
        if own.figures.load_maps:
            raise ValueError(f"{suite}.figures.load_maps: load maps belong into figures")
        allowed = [*task.variants, *own.variants, *task.bases]
        _check_figures(task, f"{suite}.figures", own.figures, allowed)
    _check_boolq(task)
    _check_tuning(task)


def check_masks(benchmarks: BenchmarksConfig, tasks: Mapping[str, TaskConfig]) -> None:
    """The recorded selections are of a conversion, and fit the layers and models that follow them.

    Raises ValueError for the first fault found.
    """
    masks = benchmarks.masks
    followers = {
        f"{section}.{name}": entry
        for section in ("cpu", "gpu", "models")
        for name, entry in getattr(benchmarks, section).items()
        if entry.converted
    }
    if masks is None:
        for key in followers:
            raise ValueError(f"benchmarks.{key} has the mask converted: give benchmarks.masks")
        return
    if masks.task not in tasks:
        raise ValueError(f"benchmarks.masks.task = {masks.task}; defined: {list(tasks)}")
    task = tasks[masks.task]
    if masks.variant not in task.variants:
        raise ValueError(
            f"benchmarks.masks.variant = {masks.variant}; defined: {list(task.variants)}"
        )
    if task.rule(masks.variant) != "dynamic_k":
        raise ValueError(f"benchmarks.masks.variant = {masks.variant} does not select by dynamic-k")
    _check_values(task, "benchmarks.masks.values", [masks.variant], masks.values)
    d_ff = _d_ff(task, masks.variant, task.variants[masks.variant])
    recorded = d_ff // task.stages(masks.variant).split.expert_size
    for key, entry in followers.items():
        if entry.num_experts != recorded:
            raise ValueError(
                f"benchmarks.{key}.num_experts = {entry.num_experts} must be {recorded}, "
                "as in benchmarks.masks"
            )


def _check_data(task: TaskConfig) -> None:
    _check_input(task, "model", task.model)
    for name, base in task.bases.items():
        if isinstance(base, DistillConfig):
            _check_input(task, f"bases.{name}.model", base.model)
    if task.data.kind == "images":
        return
    stages = ("dense", "projections", "sparsify", "router", "ztw", "avit")
    trained = {stage: getattr(task, stage) for stage in stages}
    for stage, cfg in (trained | {f"bases.{k}": v for k, v in task.bases.items()}).items():
        if cfg is not None:
            _check_no_image_options(task, stage, cfg)


def _check_input(task: TaskConfig, place: str, model: TransformerConfig) -> None:
    """The model at the key `place` can read the task's samples."""
    if task.data.kind != model.data_kind:
        raise ValueError(
            f"{place}.architecture {model.architecture} takes data of the kind "
            f"{model.data_kind}, but data.kind is {task.data.kind}"
        )
    if task.data.kind == "images":
        _check_grid(task, place, model)
    elif task.data.length > model.positions:
        raise ValueError(
            f"data.length = {task.data.length} tokens exceeds {place}.positions = "
            f"{model.positions}, the longest sequence of the model"
        )


def _check_no_image_options(task: TaskConfig, stage: str, cfg: TrainingConfig) -> None:
    for key in ("augment", "mixup", "cutmix"):
        if getattr(cfg, key) != TrainingConfig.model_fields[key].default:
            raise ValueError(f"{stage}.{key} changes images; data.kind is {task.data.kind}")


def _check_grid(task: TaskConfig, place: str, model: ViTConfig) -> None:
    side, patch = task.data.image_size, model.patch_size
    if side % patch:
        raise ValueError(
            f"{place}.patch_size = {patch} must divide data.image_size = {side}; "
            f"allowed: {_divisors(side)}"
        )
    grid = side
    for _ in model.stem:
        grid = (grid + 1) // 2
    if model.stem and grid != side // patch:
        raise ValueError(
            f"{place}.stem has {len(model.stem)} convolutions, which make {side} pixels a "
            f"grid of {grid}; {place}.patch_size = {patch} needs a grid of {side // patch}"
        )


def _check_rates(task: TaskConfig) -> None:
    """No peak is below the end of its stage's cosine."""
    peaks = [("finetune.lr", task.finetune.lr, task.sparsify)]
    stages = ("projections", "sparsify", "router")
    for name, variant in task.all_variants.items():
        for stage in stages if isinstance(variant, ConversionVariant) else ():
            change = getattr(variant, stage)
            peaks.append(
                (f"variant '{name}': {stage}.lr", change and change.lr, getattr(task, stage))
            )
    for name, rates in task.tuning.items():
        method = getattr(task.all_variants.get(name), "method", None)
        own = getattr(task, method) if method in ("ztw", "avit") else task.sparsify
        peaks += [(f"tuning.{name}", rate, own) for rate in rates]
    for key, lr, cfg in peaks:
        if lr is not None and cfg is not None and lr < cfg.min_lr:
            raise ValueError(f"{key} = {lr} must not be below min_lr = {cfg.min_lr} of its stage")


def _check_names(task: TaskConfig) -> None:
    seen = {name: "the dense reference" for name in DENSE_VARIANTS}
    seen |= {f"{base}{FINETUNED}": f"bases.{base}, trained on" for base in task.bases}
    sections = {"bases": task.bases, "variants": task.variants}
    sections |= {f"{suite}.variants": own.variants for suite, own in task.suites.items()}
    for section, names in sections.items():
        for name in names:
            if name in seen:
                raise ValueError(f"{section}.{name}: the name is taken by {seen[name]}")
        seen |= {name: section for name in names}


def _check_figures(
    task: TaskConfig, place: str, figures: FiguresConfig, allowed: list[str]
) -> None:
    for key, names in figures.variants().items():
        for name in names:
            if name not in allowed:
                raise ValueError(f"{place}.{key} names the variant '{name}'; defined: {allowed}")
    for key in ("layers", "layer_thresholds"):
        if layers := getattr(figures, key):
            _check_values(task, f"{place}.{key}.values", layers.variants, layers.values)
    if maps := figures.load_maps:
        if task.data.kind != "images":
            raise ValueError(f"{place}.load_maps needs images: leave it out")
        _check_values(task, f"{place}.load_maps.value", [maps.variant], [maps.value])
    for key in ("active_neurons", "routers"):
        for name in getattr(figures, key):
            _need_experts(task, f"{place}.{key}", name)
    kinds = [task.stages(name).router.kind for name in figures.routers]
    if kinds and (kinds[0] != "regression" or "classification" not in kinds):
        raise ValueError(
            f"{place}.routers must compare a regression router, the first, with classification "
            f"routers; it names {kinds}"
        )


def _check_values(task: TaskConfig, key: str, variants: list[str], values: list[float]) -> None:
    for variant in variants:
        _need_experts(task, key, variant)
        rule = task.rule(variant)
        measured = getattr(task.select, rule)
        for value in values:
            if value not in measured:
                raise ValueError(
                    f"{key}: {value} is no operating point of the variant '{variant}'; "
                    f"allowed are those of select.{rule}: {measured}"
                )


def _need_experts(task: TaskConfig, key: str, variant: str) -> None:
    if not isinstance(task.all_variants.get(variant), ConversionVariant):
        raise ValueError(f"{key}: the variant '{variant}' has no experts; leave it out")


def _check_boolq(task: TaskConfig) -> None:
    if task.boolq and task.data.kind != "corpus":
        raise ValueError("boolq needs a language model, with data.kind corpus: leave it out")
    for name in task.boolq.variants if task.boolq else []:
        if not isinstance(task.variants.get(name), ConversionVariant):
            raise ValueError(
                f"boolq.variants names the variant '{name}'; defined: {list(task.variants)}"
            )


def _check_tuning(task: TaskConfig) -> None:
    """Every method of figure 4 has had as many tries, and runs at one of its rates."""
    if not task.tuning:
        return
    trained = [k for k, v in task.variants.items() if not isinstance(v, QuantizedVariant)]
    allowed = [*trained, "dense_finetuned"]  # what has a rate
    for name, rates in task.tuning.items():
        if name not in allowed:
            raise ValueError(f"tuning names the variant '{name}'; allowed: {allowed}")
        if len(set(rates)) != len(rates) or task.rate(name) not in rates:
            raise ValueError(
                f"tuning.{name} = {rates} must list different rates, and among them the one that "
                f"the variant has: {task.rate(name)}"
            )
    needed = {*task.figures.tradeoff, "dense_finetuned"} & {*allowed}
    if missing := needed - task.tuning.keys():
        raise ValueError(f"tuning lacks variants that figure 4 compares: {sorted(missing)}")
    counts = {name: len(rates) for name, rates in task.tuning.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"tuning must give every variant as many rates; it gives {counts}")


def _check_variant(task: TaskConfig, name: str, variant: VariantConfig) -> None:
    if isinstance(variant, ConversionVariant):
        _check_conversion(task, name, variant)
        return
    if isinstance(variant, QuantizedVariant):
        return
    own = getattr(task, variant.method)
    if own is None:
        raise ValueError(f"variant '{name}': the task has no section {variant.method}")
    if variant.method == "avit" and task.model.architecture != "vit":
        raise ValueError(f"variant '{name}': avit halts the tokens of images; leave it out")
    if variant.method == "ztw":
        if task.data.kind == "corpus":
            raise ValueError(f"variant '{name}': ztw needs a classifier; leave it out")
        if not task.select.confidence:
            raise ValueError(f"variant '{name}': select.confidence is missing")
    _check_epochs(task, name, own.epochs, f"{variant.method}.epochs")


def _check_conversion(task: TaskConfig, name: str, variant: ConversionVariant) -> None:
    if variant.projections is not None and task.projections is None:
        raise ValueError(f"variant '{name}': the task has no section projections")
    stages = task.stages(name)
    d_ff, size = _d_ff(task, name, variant), stages.split.expert_size
    if d_ff % size:
        raise ValueError(
            f"variant '{name}': split.expert_size = {size} must divide model.d_ff = {d_ff}; "
            f"allowed: {_divisors(d_ff)}"
        )
    if stages.rule == "top_k" and max(task.select.top_k) > d_ff // size:
        raise ValueError(
            f"variant '{name}': select.top_k = {max(task.select.top_k)} exceeds its "
            f"{d_ff // size} experts; allowed: 1 to {d_ff // size}"
        )
    if stages.projections:
        _check_projections(name, stages)
    _check_epochs(task, name, stages.epochs, "projections + sparsify + router epochs")


def _d_ff(task: TaskConfig, name: str, variant: ConversionVariant) -> int:
    """Hidden neurons of an FFN of the model that a variant converts."""
    if variant.base is None:
        return task.model.d_ff
    if variant.base not in task.bases:
        raise ValueError(
            f"variant '{name}': base = '{variant.base}' is not defined; defined in bases: "
            f"{list(task.bases) or 'none'}"
        )
    base = task.bases[variant.base]
    if isinstance(base, PruneConfig):
        if base.heads > 0 and task.model.architecture not in ("vit", "bert"):
            raise ValueError(
                f"bases.{variant.base}.heads = {base.heads}: heads of "
                f"{task.model.architecture} cannot be removed; give 0 to prune neurons alone"
            )
        return remaining(task.model.d_ff, base.neurons)
    return base.model.d_ff


def _check_projections(name: str, stages: Stages) -> None:
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


def _check_epochs(task: TaskConfig, name: str, own: float, key: str) -> None:
    if not math.isclose(own, task.epochs):
        raise ValueError(
            f"variant '{name}': {key} = {own:g}, but the task's sparsify.epochs + "
            f"router.epochs is {task.epochs:g}; every variant must get the same number of steps"
        )


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
