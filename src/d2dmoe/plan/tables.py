"""Which files each table is gathered from, and which tables and figures a target is made of."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from d2dmoe.config.task import SUITES, Suite
from d2dmoe.config.variant import DENSE_VARIANTS
from d2dmoe.figures import FIGURES
from d2dmoe.plan.figures import folder_of, table_path, task_figures
from d2dmoe.plan.lineage import Lineage, Step
from d2dmoe.plan.plan import SPLITS, Plan
from d2dmoe.plan.variants import labels, rate
from d2dmoe.selection_rules import RULES

MAIN = SUITES[0]
ENDINGS = ("png", "pdf")
EVALUATED = SPLITS[1:]  # that every variant is measured on
TEXTS = 3  # of which it is shown what each token executes
Entry = dict[str, Any]  # the path of a table, and what its rows belong to


# Tables of a task.


def points(plan: Plan, suite: Suite, task: str, split: str = "test") -> list[Entry]:
    """Every table of operating points."""
    return [_points(plan, line, split) for line in plan.lines(suite, task)]


def _points(plan: Plan, line: Lineage, split: str) -> Entry:
    cfg = plan.task(line.task)
    about: Entry = {"model": cfg.model.name, "dataset": cfg.data.source.partition(":")[2]}
    about["reference"] = line.variant in DENSE_VARIANTS
    return {"path": line.evaluation(split)} | about | line.labels


def outcomes(plan: Plan, suite: Suite, task: str) -> list[Entry]:
    """What became of each sample, of all operating points."""
    return [
        {split: line.outcomes(split) for split in EVALUATED}
        | {"reference": line.variant in DENSE_VARIANTS}
        | line.labels
        for line in plan.lines(suite, task)
    ]


def outcome_files(plan: Plan, suite: Suite, task: str) -> list[str]:
    """Their files."""
    return [entry[split] for entry in outcomes(plan, suite, task) for split in EVALUATED]


def pairs(plan: Plan, suite: Suite, task: str) -> list[tuple[str, str]]:
    """The variants that are compared: each with those after it in a figure's legend."""
    drawn = plan.task(task).figures_of(suite).of_figures().values()
    lists = (names for names in drawn if isinstance(names, list))
    return list(dict.fromkeys(pair for names in lists for pair in combinations(names, 2)))


def dense_points(plan: Plan, suite: Suite, task: str) -> list[Entry]:
    """The dense models' test tables; those of the main suite serve all."""
    dense = [line for line in plan.lines(MAIN, task) if line.variant in DENSE_VARIANTS]
    return [{"path": line.evaluation("test")} | line.labels for line in dense]


def conversions(plan: Plan, suite: Suite, task: str) -> list[Lineage]:
    """The lineages that lead to experts."""
    return [line for line in plan.lines(suite, task) if line.method.experts]


def layers(plan: Plan, suite: Suite, task: str) -> list[Entry]:
    """Every table of executed experts per layer."""
    found = conversions(plan, suite, task)
    return [{"path": line.layers("test")} | line.labels for line in found]


def activity(plan: Plan, suite: Suite, task: str) -> list[Entry]:
    """Every histogram of active neurons, of the models that were fine-tuned for their sparsity."""
    return [
        {"path": f"{line.step_of('sparsify').folder}/activity/test.csv"} | line.labels
        for line in conversions(plan, suite, task)
        if any(step.stage.name == "sparsify" for step in line.steps)
    ]


def neighbours(plan: Plan, suite: Suite, task: str) -> list[Entry]:
    """The variants that stand beside each other in the figure of neighbouring methods, what they
    are called and what they needed; those without a figure are none."""
    cfg = plan.task(task)
    figures = cfg.figures_of(suite)
    found = []
    for name in figures.neighbours:
        line = plan.line(suite, task, name)
        entry: Entry = {key: line.labels[key] for key in ("task", "method", "variant")}
        entry |= {"label": labels(cfg)[name], "training_free": line.method.training_free}
        found.append(entry | {"epochs": round(sum(map(_epochs, line.steps[1:])), 4)})
    return found


def patch_load(plan: Plan, suite: Suite, task: str) -> list[Entry]:
    """The table of load per patch, of the variant whose load maps are drawn."""
    options = plan.task(task).figures_of(suite).load_maps
    line = plan.line(suite, task, options.variant)
    return [{"path": f"{line.folder}/load_maps/{line.knob}.csv"} | line.labels]


def token_load(plan: Plan, suite: Suite, task: str) -> list[Entry]:
    """The table of load per token of a few samples: of the variant whose load maps are drawn, or of
    a text task's first whose experts a rule chooses, where there is one."""
    cfg = plan.task(task)
    maps = cfg.figures_of(suite).load_maps
    if cfg.data.kind == "images" and not maps:
        return []
    lines = [line for line in conversions(plan, suite, task) if line.knob in RULES]
    shown = [line for line in lines if not maps or line.variant == maps.variant][:1]
    return [{"path": f"{x.folder}/token_load/{x.knob}.csv"} | x.labels for x in shown]


def token_load_options(plan: Plan, task: str, knob: str) -> dict[str, Any]:
    """All operating points of a knob; as many images as maps are drawn of, or a few texts."""
    cfg = plan.task(task)
    maps = cfg.figures_of(MAIN).load_maps
    return {"values": getattr(cfg.select, knob), "samples": maps.images if maps else TEXTS}


def fairness(plan: Plan, task: str) -> list[Entry]:
    """What each training had, beyond the dense model."""
    cfg, found = plan.task(task), []
    for line in plan.lines(MAIN, task):
        if len(line.steps) > 1:
            lr = rate(cfg, line.variant)
            entry = line.labels | {"lr": lr, "rates": cfg.tuning.get(line.variant, [lr])}
            entry |= {"about": f"{line.last.data}/dataset.json"}
            found.append(entry | {"stages": [_training(step) for step in line.steps[1:]]})
    return found


def _training(step: Step) -> dict[str, Any]:
    """The length of a stage's training."""
    return {
        "stage": step.stage.name,
        "epochs": _epochs(step),
        "batch_size": getattr(step.cfg, "batch_size", 1),
    }


def _epochs(step: Step) -> float:
    """Passes over the data."""
    return getattr(step.cfg, "epochs", 0.0)


def wall_times(plan: Plan, task: str) -> list[Entry]:
    """The records of the jobs behind each training, beyond the dense model."""
    return [
        line.labels | {"records": [job_record(s.folder, s.stage.name) for s in line.steps[1:]]}
        for line in plan.lines(MAIN, task)
        if len(line.steps) > 1
    ]


def job_records(plan: Plan, task: str) -> list[str]:
    """The records of all jobs that the table of wall times counts."""
    return sorted({record for entry in wall_times(plan, task) for record in entry["records"]})


def tuning(plan: Plan, task: str) -> list[Entry]:
    """The validation points of every learning rate tried."""
    cfg = plan.task(task)
    return [
        _points(plan, line, "validation") | {"lr": lr, "chosen": lr == rate(cfg, line.variant)}
        for lr, line in plan.trials
        if line.task == task
    ]


# Tables of all tasks, and targets.


def task_tables(plan: Plan, suite: Suite, task: str) -> list[str]:
    """Names of a task's tables."""
    cfg = plan.task(task)
    names = ["tradeoff", "summary"]
    if pairs(plan, suite, task):
        names.append("comparisons")
    if conversions(plan, suite, task):
        names.append("layers")
    if activity(plan, suite, task):
        names.append("activity")
    if cfg.figures_of(suite).load_maps:
        names.append("patch_load")
    if suite == MAIN and token_load(plan, suite, task):
        names.append("token_load")
    if len(neighbours(plan, suite, task)) > 1:
        names.append("neighbours")
    small = cfg.data.kind != "images" and not getattr(cfg.data, "streaming", False)
    if suite == MAIN and small:  # enough to count words, or bytes
        names.append("reference")
    if suite == MAIN:
        names += ["fairness", "wall_times"]
    return names


def of_tasks(plan: Plan, suite: Suite, table: str) -> list[Entry]:
    """A table of every task that has one."""
    if table == "tuning":
        tasks = [name for name, task in plan.config.tasks.items() if task.tuning]
    else:
        known = {task: task_tables(plan, suite, task) for task in plan.tasks_of(suite)}
        tasks = [task for task, names in known.items() if table in (*names, "validation")]
    return [{"path": table_path(suite, table, task)} for task in tasks]


def models(plan: Plan) -> list[Entry]:
    """`results/models.csv`: the folder of every stage of every variant and seed."""
    columns = ("task", "variant", "seed", "stage", "folder")
    rows = dict.fromkeys(  # suites share variants
        (line.task, line.variant, line.seed, step.stage.name, step.folder)
        for suite in SUITES
        for line in plan.lineages[suite]
        for step in line.steps
    )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def task_results(plan: Plan, suite: Suite, task: str) -> list[str]:
    """All tables and figures of one task: its own target."""
    paths = [table_path(suite, name, task) for name in task_tables(plan, suite, task)]
    return paths + [
        figure_path(suite, name, end, task)
        for name in task_figures(plan, suite, task)
        for end in ENDINGS
    ]


def suite_tables(plan: Plan, suite: Suite) -> list[str]:
    """The tables over all tasks of a suite."""
    tasks = plan.tasks_of(suite)
    names = {name for task in tasks for name in task_tables(plan, suite, task)} | {"claims"}
    return [table_path(suite, name) for name in sorted(names)]


def suite_results(plan: Plan, suite: Suite) -> list[str]:
    """All tables and figures of a suite."""
    tasks = plan.tasks_of(suite)
    return suite_tables(plan, suite) + [
        path for task in tasks for path in task_results(plan, suite, task)
    ]


def figure_results(plan: Plan, figure: str) -> list[str]:
    """A figure of every task and suite that has it, and of all tasks."""
    paths = [
        figure_path(suite, figure, end, task)
        for suite in SUITES
        for task in plan.tasks_of(suite)
        if figure in task_figures(plan, suite, task)
        for end in ENDINGS
    ]
    if FIGURES[figure].overall:
        paths += [figure_path(MAIN, figure, end) for end in ENDINGS]
    return paths


def all_results(plan: Plan) -> list[str]:
    """All that `snakemake all` makes."""
    results = ["results/models.csv", explorer_page(MAIN)]
    results += ["results/tables/boolq.csv"] if boolq(plan) else []
    overall = [figure.name for figure in FIGURES.values() if figure.overall]
    results += [figure_path(MAIN, name, end) for name in overall for end in ENDINGS]
    return suite_results(plan, MAIN) + results


def explorer_page(suite: str) -> str:
    """The page on which a suite's results can be explored."""
    return f"results/explorer/{suite}.html"


def figure_path(suite: Suite, figure: str, ending: str, task: str | None = None) -> str:
    """Path of a task's figure, or of one of all tasks."""
    folder = f"results/figures/{folder_of(suite)}{f'{task}/' if task else ''}"
    return f"{folder}{figure}.{ending}"


# BoolQ at compute budgets (table 1).


def boolq_lineages(plan: Plan) -> Iterator[Lineage]:
    """Dense models and chosen variants of the tasks that have `boolq`."""
    for line in plan.lineages[MAIN]:
        options = plan.task(line.task).boolq
        if options and line.variant in (*DENSE_VARIANTS, *options.variants):
            yield line


def boolq(plan: Plan) -> list[Entry]:
    """Every table of BoolQ."""
    found = boolq_lineages(plan)
    return [{"path": f"{line.folder}/boolq/{line.knob}.csv"} | line.labels for line in found]


def boolq_inputs(plan: Plan, step: Step, knob: str) -> dict[str, Any]:
    """What BoolQ reads: a model, its and the dense model's operating points, and the questions."""
    options = plan.task(step.task).boolq
    assert options is not None
    kind, _, name = options.source.partition(":")
    return {
        "model": step.model,
        "tokenizer": f"{step.data}/tokenizer.json",
        "points": step.evaluation("validation", knob),
        "dense": step.steps[0].evaluation("validation", "dense"),
        "data": plan.data_files(step.data, ["validation"]),
        "questions": name if kind == "path" else [],
    }


def boolq_options(plan: Plan, step: Step, knob: str) -> dict[str, Any]:
    """Budgets and questions; a dense model has its own cost only."""
    task = plan.task(step.task)
    assert task.boolq is not None
    return {
        "batch_size": task.eval_batch_size,
        "budgets": task.boolq.budgets if knob in RULES else [1.0],
        "limit": task.boolq.limit,
        "source": task.boolq.source,
    }


# Logs and records of jobs, which lie as what they are of.


def job_log(folder: str, job: str) -> str:
    """The log of a job whose result lies in a folder of `results/`."""
    return f"results/logs/{folder.removeprefix('results/')}/{job}.log"


def job_record(folder: str, job: str) -> str:
    """Time of such a job, and by what its result was made."""
    return f"results/benchmarks/jobs/{folder.removeprefix('results/')}/{job}.json"
