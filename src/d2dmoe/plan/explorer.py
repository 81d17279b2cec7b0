"""Of what results the explorer's pages are made; `explored` has what they then hold."""

from pathlib import Path
from typing import Any

from d2dmoe.config.task import SUITES, Suite
from d2dmoe.figures import FIGURES
from d2dmoe.lookup import resolve
from d2dmoe.plan.figures import table_path
from d2dmoe.plan.plan import Plan
from d2dmoe.plan.publishing import TABLES
from d2dmoe.plan.tables import MAIN, suite_results

LOAD_MAPS = FIGURES["figure_8b"]


def files(plan: Plan, suite: Suite) -> list[str]:
    """What the page of one's own results is made of; benchmarks are shown where they are."""
    tables = [path for path in suite_results(plan, suite) if path.startswith(TABLES)]
    maps = mapped(plan).values() if suite == MAIN else ()
    return [*tables, *(path for request in maps for path in request.inputs.values())]


def suites_in(plan: Plan, folder: Path) -> list[Suite]:
    """The suites that have results in a folder."""
    return [
        suite
        for suite in SUITES
        if plan.tasks_of(suite) and (folder / table_path(suite, "tradeoff")).is_file()
    ]


def mapped(plan: Plan) -> dict[str, Any]:
    """What load maps are drawn of, by task."""
    tasks = [x for x in plan.tasks_of(MAIN) if plan.task(x).figures_of(MAIN).load_maps]
    return {x: resolve(LOAD_MAPS.request)(plan, MAIN, x, LOAD_MAPS) for x in tasks}
