"""What of a workflow's results is published, so that figures are drawn of it without a training.

results/published/                    what `snakemake publish` makes
results/reference/NAME/config.yaml    … and where it then lies: the configuration,
results/reference/NAME/tables/        its `results/tables` over all tasks, of which a task's are the
                                      rows, with what figure 8b shows
results/reference/NAME/TABLE.csv      or a table of the benchmarks
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from d2dmoe.config.task import SUITES, Suite
from d2dmoe.figures import FIGURES, Figure
from d2dmoe.lookup import resolve
from d2dmoe.plan.figures import Request, folder_of
from d2dmoe.plan.plan import Plan
from d2dmoe.plan.tables import MAIN, suite_tables, task_figures

TABLES = "results/tables/"
TUNING = f"{TABLES}tuning.csv"
KINDS = (".csv", ".json", ".safetensors", ".yaml")  # of files


class Asked(NamedTuple):
    """A figure of a suite and a task, or of all tasks, and what it is drawn of."""

    figure: Figure
    suite: Suite
    task: str | None
    request: Request


def files(plan: Plan, suites: Sequence[Suite] = SUITES) -> dict[str, str]:
    """What can be published of a plan's results in these suites: each file, and where it lies in
    the folder."""
    asked = [one for one in requests(plan) if one.suite in suites]
    # Large, and in a suite whose figures do not show it the main one's once more for each variant.
    shows_activity = {one.suite for one in asked if "activity" in one.request.inputs}
    made = [
        path
        for suite in suites
        if plan.tasks_of(suite)
        for path in suite_tables(plan, suite)
        if suite in shows_activity or PurePosixPath(path).stem != "activity"
    ]
    made += [TUNING] if any(task.tuning for task in plan.config.tasks.values()) else []
    published = {path: place(path) for path in made}
    for _figure, _suite, task, request in asked:
        for name, path in request.inputs.items():
            if not path.startswith(TABLES):
                published[path] = place(path, name, task)
    return published


def begun(plan: Plan) -> dict[str, str]:
    """Those of the suites that have some table already, or else of the main one: nobody waits for
    a suite that was not asked for."""
    suites = [suite for suite in SUITES if _has_table(plan, suite)] or [MAIN]
    tuned = Path(TUNING).is_file()
    return {path: to for path, to in files(plan, suites).items() if tuned or path != TUNING}


def _has_table(plan: Plan, suite: Suite) -> bool:
    folder = Path(TABLES, folder_of(suite))
    return any(map(has_tables, [folder, *(folder / task for task in plan.config.tasks)]))


def published_suites(tables: Path) -> list[Suite]:
    """The suites whose tables lie in a published folder's `tables/`."""
    return [suite for suite in SUITES if has_tables(tables / folder_of(suite))]


def has_tables(folder: Path) -> bool:
    """Whether a suite's tables lie in a folder."""
    return any(path.name != PurePosixPath(TUNING).name for path in folder.glob("*.csv"))


def config_text(plan: Plan) -> str:
    """The configuration as it is published, as YAML."""
    return as_yaml(plan.config.model_dump(mode="json", exclude_unset=True))


def as_yaml(options: dict[str, Any]) -> str:
    """Options as a configuration has them."""
    # libyaml writes the same text four times as fast; wheels of PyYAML have it.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(options, Dumper=dumper, allow_unicode=True, sort_keys=False)


def requests(plan: Plan) -> Iterator[Asked]:
    """Every figure that is drawn."""
    overall = [(figure, MAIN, None) for figure in FIGURES.values() if figure.overall]
    of_tasks = [
        (FIGURES[name], suite, task)
        for suite in SUITES
        for task in plan.tasks_of(suite)
        for name in task_figures(plan, suite, task)
    ]
    for figure, suite, task in (*overall, *of_tasks):
        yield Asked(figure, suite, task, resolve(figure.request)(plan, suite, task, figure))


def place(path: str, name: str = "", task: str | None = None) -> str:
    """Where a file of `results/` lies in the folder: a task's table in that of all tasks; others,
    whose folders differ between configurations, by the name that their figure gives them."""
    file = PurePosixPath(path)
    if not path.startswith(TABLES):
        return f"tables/{task}/{name}{file.suffix}"
    whole = file.parent.parent / file.name if file.parent.name == task else file
    return str(whole.relative_to("results"))
