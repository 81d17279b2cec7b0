"""What the sections of a configuration must be together. Each fault names keys and values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2dmoe.config.benchmarks import BenchmarksConfig
from d2dmoe.config.compression import DistillConfig, PruneConfig
from d2dmoe.config.data import check_source
from d2dmoe.config.downstream import check_boolq
from d2dmoe.config.experiment import Config
from d2dmoe.config.figures import FiguresConfig
from d2dmoe.config.model import TransformerConfig, ViTConfig
from d2dmoe.config.task import SUITES, TaskConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.config.variant import DENSE_VARIANTS, FINETUNED
from d2dmoe.config.weights import check_weights
from d2dmoe.errors import ConfigError, DataError
from d2dmoe.figures import FIGURES, WALL_CLOCK, by_key
from d2dmoe.lookup import resolve
from d2dmoe.methods import EVALUATIONS
from d2dmoe.methods.checks import divisors
from d2dmoe.methods.conversion.plan import conversion, ffn_width
from d2dmoe.models import ARCHITECTURES
from d2dmoe.plan.figures import check_converted, need_points
from d2dmoe.plan.variants import chains, has_experts, knob_of, method_plan, rate, with_rate
from d2dmoe.selection_rules import RULES
from d2dmoe.stages import STAGES

OTHER_RULES = (
    *("all", "all_tasks", "validation", "validation_tradeoff", "tuning", "tuning_table"),
    *("benchmarks", "models", "clean_unused", "remove_unused", "dataset", "tokenizer", "activity"),
    *("layers_table", "activity_table", "patch_load_table", "load_maps", "tradeoff", "summary"),
    *("token_load", "token_load_table"),
    *("claims", "reference", "fairness", "neighbours_table", "boolq", "table_1"),
    *("benchmark_cpu", "benchmark_gpu", "benchmark_model", "benchmark_decode", "benchmark_table"),
    *("benchmark_masks", "benchmark_claims", "verify", "wall_times", "publish", "figures"),
    *("explorer", "published_explorer", "own_explorer"),
)


def rule_names() -> set[str]:
    """Names of the workflow's rules and targets; a task is a target beside them."""
    figures = {*FIGURES, "figure_5", "figure_11", WALL_CLOCK.name}
    drawn = (f"draw_{figure}{end}" for figure in figures for end in ("", "_all_tasks"))
    trials = (f"{how}_trial" for how in EVALUATIONS)
    return {*OTHER_RULES, *SUITES, *STAGES, *EVALUATIONS, *trials, *figures, *drawn}


def check(config: Config, root: Path) -> None:
    """Refuse what cannot be run; relative paths of the configuration begin in `root`.

    Raises:
        ConfigError: one message with a line for each task that has a fault, its first.
        DataError: a task's dataset is not there, or cannot be trained on.
        CheckpointError: pretrained weights are not there, or not those of the model.
    """
    lines = []
    for name, task in config.tasks.items():
        try:
            if name in rule_names():
                raise ValueError("the name is a rule's or target's; call the task otherwise")
            check_task(task)
        except ValueError as error:
            lines.append(f"tasks.{name}: {error}")
    if not lines:
        try:
            check_masks(config.benchmarks, config.tasks)
        except ValueError as error:
            lines.append(str(error))
    if lines:
        raise ConfigError("the configuration is wrong:\n  " + "\n  ".join(lines))
    for name, task in config.tasks.items():
        _check_files(name, task, root)


def _check_files(name: str, task: TaskConfig, root: Path) -> None:
    """What the task reads from a path is there, as far as can be told without reading all of it."""
    try:
        check_source(task.data, root)
        if task.boolq:
            check_boolq(task.boolq, root)
        for model in _models(task).values():
            check_weights(model, root)
    except OSError as error:
        raise DataError(f"tasks.{name}: {error}. Correct the path, or its permissions.") from error


def check_task(task: TaskConfig) -> None:
    """Raises ValueError for the first fault found."""
    _check_data(task)
    _check_names(task)
    for name, variant in task.all_variants.items():
        method_plan(variant).check(task, name, variant)
        _check_knob(task, name)
    _check_rates(task)
    if "tradeoff" not in task.figures.of_figures():
        raise ValueError("figures.tradeoff is missing: name the variants of figure 4")
    _check_figures(task, "figures", task.figures, list(task.variants))
    for suite, own in task.suites.items():
        for key in own.figures.of_figures():
            if by_key()[key].main_only:
                raise ValueError(f"{suite}.figures.{key}: it belongs into figures")
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
    check_converted(task, "benchmarks.masks.variant", [masks.variant])
    need_points(task, "benchmarks.masks.values", [masks.variant], masks.values)
    variant: Any = task.variants[masks.variant]  # a conversion
    d_ff = ffn_width(task, masks.variant, variant)
    recorded = d_ff // conversion(task, variant).clustering.expert_size
    for key, entry in followers.items():
        if entry.num_experts != recorded:
            raise ValueError(
                f"benchmarks.{key}.num_experts = {entry.num_experts} must be {recorded}, "
                "as in benchmarks.masks"
            )


def _check_data(task: TaskConfig) -> None:
    for place, model in _models(task).items():
        _check_input(task, place, model)
    for name, base in task.bases.items():
        if isinstance(base, PruneConfig):
            _check_heads(task, name, base)
    if task.data.kind == "images":
        return
    trained = {key: value for key, value in task if isinstance(value, TrainingConfig)}
    for stage, cfg in (trained | {f"bases.{k}": v for k, v in task.bases.items()}).items():
        _check_no_image_options(task, stage, cfg)


def _models(task: TaskConfig) -> dict[str, TransformerConfig]:
    """The models that are made of a configuration, by its keys."""
    students = {k: base for k, base in task.bases.items() if isinstance(base, DistillConfig)}
    return {"model": task.model} | {f"bases.{k}.model": base.model for k, base in students.items()}


def _check_input(task: TaskConfig, place: str, model: TransformerConfig) -> None:
    """The model at the key `place` can read the task's samples."""
    data: Any = task.data
    if data.kind != model.data_kind:
        raise ValueError(
            f"{place}.architecture {model.architecture} takes data of the kind "
            f"{model.data_kind}, but data.kind is {data.kind}"
        )
    if isinstance(model, ViTConfig):
        _check_grid(data.image_size, place, model)
    positions = getattr(model, "positions", None)
    if positions is not None and data.length > positions:
        raise ValueError(
            f"data.length = {data.length} tokens exceeds {place}.positions = "
            f"{positions}, the longest sequence of the model"
        )


def _check_heads(task: TaskConfig, name: str, base: PruneConfig) -> None:
    architecture = task.model.architecture
    if base.heads > 0 and not ARCHITECTURES[architecture].prunable_heads:
        raise ValueError(
            f"bases.{name}.heads = {base.heads}: heads of {architecture} cannot be removed; give 0 "
            "to prune neurons alone"
        )


def _check_no_image_options(task: TaskConfig, stage: str, cfg: TrainingConfig) -> None:
    for key in ("augment", "mixup", "cutmix"):
        if getattr(cfg, key) != TrainingConfig.model_fields[key].default:
            raise ValueError(f"{stage}.{key} changes images; data.kind is {task.data.kind}")


def _check_grid(side: int, place: str, model: ViTConfig) -> None:
    patch = model.patch_size
    if side % patch:
        raise ValueError(
            f"{place}.patch_size = {patch} must divide data.image_size = {side}; "
            f"allowed: {divisors(side)}"
        )
    grid = side
    for _ in model.stem:
        grid = (grid + 1) // 2
    if model.stem and grid != side // patch:
        raise ValueError(
            f"{place}.stem has {len(model.stem)} convolutions, which make {side} pixels a "
            f"grid of {grid}; {place}.patch_size = {patch} needs a grid of {side // patch}"
        )


def _check_names(task: TaskConfig) -> None:
    seen = {name: "the dense reference" for name in DENSE_VARIANTS}
    seen |= {f"{base}{FINETUNED}": f"bases.{base}, trained on" for base in task.bases}
    sections: dict[str, Mapping[str, Any]] = {"bases": task.bases, "variants": task.variants}
    sections |= {f"{suite}.variants": own.variants for suite, own in task.suites.items()}
    for section, names in sections.items():
        for name in names:
            if name in seen:
                raise ValueError(f"{section}.{name}: the name is taken by {seen[name]}")
        seen |= {name: section for name in names}


def _check_knob(task: TaskConfig, name: str) -> None:
    """A variant has operating points, where they stand under `select`."""
    knob = knob_of(task, name)
    if getattr(task.select, knob, None) == []:
        raise ValueError(f"variant '{name}': select.{knob} is missing")


def _check_rates(task: TaskConfig) -> None:
    """No peak is below the end of its stage's cosine."""
    trainings = [("finetune.lr", task.finetune_step[1])]
    for name in task.all_variants:
        for stage, cfg in chains(task, name)[0]:
            trainings.append((f"variant '{name}': {stage}.lr", cfg))
    for name, rates in task.tuning.items():
        known = name in task.all_variants
        chain = chains(task, name)[0] if known else [task.finetune_step]
        for lr in rates:
            trainings += [(f"tuning.{name}", cfg) for _stage, cfg in with_rate(chain, lr)]
    for key, cfg in trainings:
        if isinstance(cfg, TrainingConfig) and cfg.lr < cfg.min_lr:
            raise ValueError(
                f"{key} = {cfg.lr} must not be below min_lr = {cfg.min_lr} of its stage"
            )


def _check_figures(
    task: TaskConfig, place: str, figures: FiguresConfig, allowed: list[str]
) -> None:
    for key, names in figures.variants().items():
        for name in names:
            if name not in allowed:
                raise ValueError(f"{place}.{key} names the variant '{name}'; defined: {allowed}")
    for key, options in figures.of_figures().items():
        if reference := by_key()[key].check:
            resolve(reference)(task, f"{place}.{key}", options)


def _check_boolq(task: TaskConfig) -> None:
    if task.boolq and task.data.kind != "corpus":
        raise ValueError("boolq needs a language model, with data.kind corpus: leave it out")
    for name in task.boolq.variants if task.boolq else []:
        if not has_experts(task, name) or name not in task.variants:
            raise ValueError(
                f"boolq.variants names the variant '{name}'; defined: {list(task.variants)}"
            )
        if (knob := knob_of(task, name)) not in RULES:
            raise ValueError(f"boolq.variants: '{name}' has {knob} of its own: name its twin")


def _check_tuning(task: TaskConfig) -> None:
    """Every method of figure 4 has had as many tries, and runs at one of its rates."""
    if not task.tuning:
        return
    reference = f"dense{FINETUNED}"
    trained = [name for name in task.variants if rate(task, name)]
    allowed = [*trained, reference]  # what has a rate
    for name, rates in task.tuning.items():
        if name not in allowed:
            raise ValueError(f"tuning names the variant '{name}'; allowed: {allowed}")
        if len(set(rates)) != len(rates) or rate(task, name) not in rates:
            raise ValueError(
                f"tuning.{name} = {rates} must list different rates, and among them the one that "
                f"the variant has: {rate(task, name)}"
            )
    needed = {*task.figures.of_figures()["tradeoff"], reference} & {*allowed}
    if missing := needed - task.tuning.keys():
        raise ValueError(f"tuning lacks variants that figure 4 compares: {sorted(missing)}")
    counts = {name: len(rates) for name, rates in task.tuning.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"tuning must give every variant as many rates; it gives {counts}")
