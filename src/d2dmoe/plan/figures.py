"""What each figure is drawn of, and when its options are possible."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from d2dmoe.config.figure_options import LayersConfig, LoadMapsConfig
from d2dmoe.config.task import SUITES, Suite, TaskConfig
from d2dmoe.config.variant import FINETUNED
from d2dmoe.figures import FIGURES, Figure, by_key
from d2dmoe.methods import METHODS
from d2dmoe.methods.conversion.options import ConversionVariant
from d2dmoe.methods.conversion.plan import conversion
from d2dmoe.plan.variants import chains, has_experts, knob_of, labels
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES

if TYPE_CHECKING:
    from d2dmoe.plan.plan import Plan


@dataclass(frozen=True)
class Request:
    """What a figure is drawn of: files by name, and plain arguments by name."""

    inputs: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


def folder_of(suite: Suite) -> str:
    """A suite's own folder with its slash; the main one's is empty."""
    return "" if suite == SUITES[0] else f"{suite}/"


def table_path(suite: Suite, table: str, task: str | None = None) -> str:
    """Path of a task's table, or of that of all tasks."""
    return f"results/tables/{folder_of(suite)}{f'{task}/' if task else ''}{table}.csv"


# What figures are drawn of; the task is None for a figure of all tasks.


def tradeoff(plan: "Plan", suite: Suite, task: str | None, figure: Figure) -> Request:
    """Curves of cost and quality: a panel for the task, or one for each."""
    tasks = [task] if task else plan.tasks_of(suite)
    panels = [
        _panel(plan, suite, name, figure, _options(plan, suite, name, figure)) for name in tasks
    ]
    return _of_points(suite, task, figure, panels)


def apart(plan: "Plan", suite: Suite, task: str, figure: Figure) -> Request:
    """As `tradeoff`, with a panel for the methods that train nothing beyond the model that they
    begin with and one for the others: more curves than one panel can show. The first variant is in
    both."""
    first, *others = _options(plan, suite, task, figure)
    cfg, panels = plan.task(task), []
    for trained_no_further, words in ((True, "trained no further"), (False, "trained")):
        own = [name for name in others if _training_free(cfg, name) == trained_no_further]
        if own:
            panel = _panel(plan, suite, task, figure, [first, *own])
            panels.append(panel | {"title": f"{panel['title']}, {words}"})
    return _of_points(suite, task, figure, panels or [_panel(plan, suite, task, figure, [first])])


def _of_points(suite: Suite, task: str | None, figure: Figure, panels: list[dict]) -> Request:
    """Panels of operating points."""
    inputs = {"tradeoff": table_path(suite, "tradeoff", task)}
    return Request(inputs, {"panels": panels, "title": figure.title})


def saved_share(plan: "Plan", suite: Suite, task: None, figure: Figure) -> Request:
    """What the conversions of figure 4 save, of all tasks that have some; without inputs if none
    has."""
    figure_4, rows = FIGURES["figure_4"], []
    for name in plan.tasks_of(suite):
        drawn = _options(plan, suite, name, figure_4)
        converted = [variant for variant in drawn if has_experts(plan.task(name), variant)]
        if converted:
            rows.append(_panel(plan, suite, name, figure_4, converted))
    tables = ("summary", "tradeoff", "layers") if rows else ()
    return Request({table: table_path(suite, table) for table in tables}, {"rows": rows})


def differences(plan: "Plan", suite: Suite, task: None, figure: Figure) -> Request:
    """The first variant of figure 4 and the others, of all tasks that compare some; without inputs
    if none does."""
    figure_4, panels = FIGURES["figure_4"], []
    for name in plan.tasks_of(suite):
        drawn = _options(plan, suite, name, figure_4)
        if len(drawn) > 1:
            panels.append(_panel(plan, suite, name, figure_4, drawn))
    inputs = {"comparisons": table_path(suite, "comparisons")} if panels else {}
    return Request(inputs, {"panels": panels, "title": figure.title})


def layers(plan: "Plan", suite: Suite, task: str, figure: Figure) -> Request:
    """Executed experts per layer at some operating points."""
    options = _options(plan, suite, task, figure)
    panel = _panel(plan, suite, task, figure, options.variants)
    inputs = {"layers": table_path(suite, "layers", task)}
    return Request(inputs, _compared(panel) | {"values": options.values})


def activity(plan: "Plan", suite: Suite, task: str, figure: Figure) -> Request:
    """Histograms of active neurons."""
    panel = _panel(plan, suite, task, figure, _options(plan, suite, task, figure))
    return Request({"activity": table_path(suite, "activity", task)}, _compared(panel))


def load_maps(plan: "Plan", suite: Suite, task: str, figure: Figure) -> Request:
    """Images and where in them the experts run."""
    options = _options(plan, suite, task, figure)
    line = plan.line(suite, task, options.variant)
    inputs = {"load_maps": f"{line.folder}/load_maps/{line.knob}.safetensors"}
    point = (
        f"{labels(plan.task(task))[options.variant]}, {RULES[line.knob].symbol} = {options.value:g}"
    )
    names = {"title": plan.task(task).title or task, "point": point}
    return Request(inputs | {"dataset": f"{line.last.data}/dataset.json"}, names)


def nothing(plan: "Plan", suite: Suite, task: str | None, figure: Figure) -> Request:
    """A figure that shows no result."""
    return Request()


def _options(plan: "Plan", suite: Suite, task: str, figure: Figure) -> Any:
    return getattr(plan.task(task).figures_of(suite), figure.key)


def _panel(
    plan: "Plan", suite: Suite, task: str, figure: Figure, variants: Sequence[str]
) -> dict[str, Any]:
    """A task's variants and their names in the legend."""
    cfg = plan.task(task)
    own = cfg.figures_of(suite).labels.get(figure.key, {})
    names = {name: labels(cfg)[name] for name in variants} | own
    places = looks(plan)
    return {
        "labels": names,
        "looks": {name: places[name] for name in variants},
        "metric": cfg.data.metrics[0],
        "task": task,
        "title": cfg.title or task,
        "training_free": [name for name in variants if _training_free(cfg, name)],
        "variants": list(variants),
    }


def _training_free(task: TaskConfig, name: str) -> bool:
    variant = task.all_variants.get(name)
    return variant is not None and METHODS[variant.method].training_free


def looks(plan: "Plan") -> dict[str, int]:
    """A number for each variant and compressed model, by which it looks alike in all figures of all
    tasks: its place among all names, the main suite's first."""
    tasks = plan.config.tasks.values()
    main = [name for task in tasks for name in task.variants]
    others = [name for task in tasks for name in (*task.all_variants, *task.bases)]
    trained_on = [f"{name}{FINETUNED}" for task in tasks for name in task.bases]
    return {name: place for place, name in enumerate(dict.fromkeys(main + others + trained_on))}


def _compared(panel: dict[str, Any]) -> dict[str, Any]:
    return {key: panel[key] for key in ("labels", "looks", "task", "title", "variants")}


# When a figure's options are possible; each raises ValueError for the first fault.


def check_layers(task: TaskConfig, place: str, options: LayersConfig) -> None:
    """Its variants have experts and these operating points."""
    need_points(task, f"{place}.values", options.variants, options.values)


def check_load_maps(task: TaskConfig, place: str, options: LoadMapsConfig) -> None:
    """Its variant has experts and this operating point; the samples are images."""
    if task.data.kind != "images":
        raise ValueError(f"{place} needs images: leave it out")
    need_points(task, f"{place}.value", [options.variant], [options.value])


def check_experts(task: TaskConfig, place: str, names: Sequence[str]) -> None:
    """Its variants have experts."""
    for name in names:
        if not has_experts(task, name):
            raise ValueError(f"{place}: the variant '{name}' has no experts; leave it out")


def check_sparsified(task: TaskConfig, place: str, names: Sequence[str]) -> None:
    """Its variants are experts of models that were fine-tuned for their sparsity."""
    check_experts(task, place, names)
    for name in names:
        if "sparsify" not in dict(chains(task, name)[0]):
            raise ValueError(
                f"{place}: the variant '{name}' is not of a sparsified model; leave it out"
            )


def check_converted(task: TaskConfig, place: str, names: Sequence[str]) -> None:
    """Its variants are conversions, D2DMoE's or MoEfication's."""
    check_experts(task, place, names)
    for name in names:
        if not isinstance(task.all_variants[name], ConversionVariant):
            raise ValueError(
                f"{place}: the variant '{name}' has no routers that are trained by a kind of loss; "
                "leave it out"
            )


def check_routers(task: TaskConfig, place: str, names: Sequence[str]) -> None:
    """A router of the paper's kind is compared with others."""
    check_converted(task, place, names)
    kinds = [conversion(task, task.all_variants[name]).router.kind for name in names]
    paper, *others = ROUTER_KINDS
    if kinds[0] != paper or len(set(kinds)) == 1:
        raise ValueError(
            f"{place} must compare a {paper} router, the first, with routers of another kind "
            f"({', '.join(others)}); it names {kinds}"
        )


def need_points(
    task: TaskConfig, key: str, variants: Sequence[str], values: Sequence[float]
) -> None:
    """Values are operating points of variants that have experts; ValueError where one is not."""
    for variant in variants:
        check_experts(task, key, [variant])
        knob = knob_of(task, variant)
        if knob not in RULES:
            raise ValueError(
                f"{key}: the variant '{variant}' has {knob} instead of a rule's values; name one "
                f"whose select is among {list(RULES)}"
            )
        measured = getattr(task.select, knob)
        for value in values:
            if value not in measured:
                raise ValueError(
                    f"{key}: {value} is no operating point of the variant '{variant}'; "
                    f"allowed are those of select.{knob}: {measured}"
                )


def task_figures(plan: "Plan", suite: Suite, task: str) -> list[str]:
    """Names of a task's figures: those that its configuration describes."""
    drawn = plan.task(task).figures_of(suite).of_figures()
    return [figure.name for key, figure in by_key().items() if key in drawn]
