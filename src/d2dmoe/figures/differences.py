"""How much better than the first method of figure 4 the others are at equal cost.

Bands of two curves overlap where their seeds share what moves both: the samples and the base. What
is left is paired, by seed and sample, so that its interval tells whether one is better.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from d2dmoe.errors import UserError
from d2dmoe.figures import style
from d2dmoe.figures.select import Panel

COMPARISONS = "results/tables/comparisons.csv"
STEP = 0.012  # of the cost, between marks of the same cost


@style.styled
def draw(panels: list[Panel], title: str, comparisons: DataFrame | None = None) -> Figure:
    """A panel for each task, two side by side.

    Args:
        panels: what is compared of each task, the first of the variants with each of the others;
            none draws an empty figure, which says so.
        title: the figure's title.
        comparisons: rows of `results/tables/comparisons.csv`.

    Raises:
        UserError: the table compares nothing of a task.
    """
    figure, cells = style.grid(len(panels), 0.3 + 2.2 * (-(-len(panels) // 2) or 1))
    looks: dict[str, style.Look] = {}
    for axes, panel in zip(cells, panels, strict=True):
        assert comparisons is not None
        looks |= _panel(axes, panel, _differences(comparisons, panel))
    figure.suptitle(title if panels else f"{title}\n(nothing is compared)", fontsize=9)
    if looks:
        style.legend(figure, [style.handle(label, look) for label, look in looks.items()])
    return figure


def _differences(comparisons: DataFrame, panel: Panel) -> dict[str, DataFrame]:
    """By rival of a task's first variant: the rows of their differences at equal cost."""
    first, *rivals = panel["variants"]
    of_task = (comparisons["task"] == panel["task"]) & (comparisons["variant"] == first)
    rows = comparisons[of_task & (comparisons["metric"] == panel["metric"])]
    if rows.empty:
        raise UserError(f"{COMPARISONS} compares '{first}' of task '{panel['task']}' with nothing")
    rows = rows[rows["measure"] == "quality"]
    found = {rival: rows[rows["rival"] == rival].sort_values("at") for rival in rivals}
    return {rival: own for rival, own in found.items() if len(own)}


def _panel(axes: Axes, panel: Panel, found: dict[str, DataFrame]) -> dict[str, style.Look]:
    """Draw one panel.

    Returns:
        The looks of its rivals, by their names in the legend.
    """
    names = {name: panel["labels"].get(name, name) for name in panel["variants"]}
    looks = {name: style.look(panel["looks"][name]) for name in found}
    for place, (rival, rows) in enumerate(found.items()):
        look = looks[rival]
        shift = STEP * (place - (len(found) - 1) / 2)
        better = -100 * rows["difference"]
        ends = 100 * np.abs(rows[["high", "low"]].to_numpy().T - rows["difference"].to_numpy())
        bars: dict[str, Any] = {"elinewidth": 0.9, "capsize": 1.5, "ecolor": look.colour}
        line = {"linestyle": look.line, "linewidth": 0.6}
        axes.errorbar(rows["at"] + shift, better, yerr=ends, **bars, **look.signs, **line)
    first = names[panel["variants"][0]]
    axes.axhline(0, color=style.look(panel["looks"][panel["variants"][0]]).colour, zorder=0)
    axes.set_title(panel["title"])
    axes.set_xlabel("FLOPs relative to the dense model")
    axes.set_ylabel(f"better than {first} by (points)")
    return {names[rival]: look for rival, look in looks.items()}
