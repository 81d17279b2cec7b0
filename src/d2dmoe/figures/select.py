"""What a panel shows, and the rows of a results table that it draws of, or an error that names what
is missing."""

from typing import TypedDict

from pandas import DataFrame

from d2dmoe.errors import UserError
from d2dmoe.figures import style

TRADEOFF = "results/tables/tradeoff.csv"
INVERTED = ("loss", "perplexity")  # metrics that the table relates as dense / converted


class Panel(TypedDict):
    """What one panel shows."""

    task: str
    metric: str  # the only one of the task's metrics that is drawn
    variants: list[str]  # the curves, in the legend's order; both dense models are always drawn
    labels: dict[str, str]  # legend texts by variant; one without is labelled by its name
    looks: dict[str, int]  # of each variant; see `style.look`
    training_free: list[str]  # of the variants, those whose markers are hollow
    title: str  # what the panel calls the task


def by_variant(table: DataFrame, name: str, task: str, variants: list[str]) -> dict[str, DataFrame]:
    """Each variant's rows of a task, in the order asked for.

    Args:
        table: with columns task and variant.
        name: the table's file, for the message.
        task: the task drawn.
        variants: the variants drawn.

    Raises:
        UserError: no variant is asked for, or one has no rows.
    """
    if not variants:
        raise UserError(f"no variants of task '{task}' to draw from {name}: name at least one")
    of_task = table[table["task"] == task]
    chosen = {variant: of_task[of_task["variant"] == variant] for variant in variants}
    missing = [variant for variant, rows in chosen.items() if rows.empty]
    if missing:
        known = sorted(of_task["variant"].unique())
        raise UserError(
            f"variant {', '.join(map(repr, missing))} of task '{task}' is missing in {name}; "
            f"it holds: {', '.join(known) or 'nothing of this task'}. "
            "Run the variant, or leave it out of the figure"
        )
    return chosen


def count_seeds(tables: dict[str, DataFrame]) -> str:
    """How many seeds the drawn variants have, as words: "3 seeds", or "1–3 seeds" if unequal."""
    counts = sorted({rows["seed"].nunique() for rows in tables.values()})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{number} seed" + ("" if counts == [1] else "s")


def of_metric(tradeoff: DataFrame, panel: Panel) -> DataFrame:
    """The rows of a panel's task and metric."""
    of_task = tradeoff[tradeoff["task"] == panel["task"]]
    rows = of_task[of_task["metric"] == panel["metric"]]
    if rows.empty:
        known = ", ".join(sorted(of_task["metric"].unique())) or "nothing of this task"
        raise UserError(
            f"metric '{panel['metric']}' of task '{panel['task']}' is missing in {TRADEOFF}; "
            f"it holds: {known}"
        )
    return rows


def quality_label(metric: str) -> str:
    """What the vertical axis shows, in words."""
    inverted = metric in INVERTED
    return f"better dense {metric} / {metric} (%)" if inverted else f"{metric} / better dense (%)"


def label_of(panel: Panel, variant: str) -> str:
    """What the legend calls a variant."""
    return panel["labels"].get(variant, variant)


def looks_of(panels: list[Panel]) -> dict[str, style.Look]:
    """A look for each label, in the order of the panels."""
    looks: dict[str, style.Look] = {}
    for panel in panels:
        for name in panel["variants"]:
            hollow = name in panel["training_free"]
            looks.setdefault(label_of(panel, name), style.look(panel["looks"][name], hollow))
    return looks
