"""Quality against parameters: what is left of methods that remove some, of any budget of FLOPs.

A variant has a point for each number of its parameters: the best of its operating points that have
as many, by the mean over seeds. Those of one variant are joined.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from d2dmoe.figures import style
from d2dmoe.figures.dense import DENSE, dense_handles, dense_marker
from d2dmoe.figures.select import (
    TRADEOFF,
    Panel,
    by_variant,
    count_seeds,
    label_of,
    looks_of,
    of_metric,
    quality_label,
)


@style.styled
def draw(tradeoff: DataFrame, panels: list[Panel], title: str) -> Figure:
    """Best quality relative to the dense model over parameters relative to it.

    Args:
        tradeoff: rows of `results/tables/tradeoff.csv`.
        panels: what each panel shows, line by line.
        title: the figure's title; tasks and numbers of seeds follow it.

    Raises:
        UserError: a metric, a variant or a dense model is missing in the table.
    """
    figure, cells = style.grid(len(panels), 0.2 + 2.5 * -(-len(panels) // 2))
    looks = looks_of(panels)
    for axes, panel in zip(cells, panels, strict=True):
        axes.set_title(f"{title}\n{panel['title']}, {_panel(axes, tradeoff, panel, looks)}")
    style.legend(figure, [*(style.handle(*entry) for entry in looks.items()), *dense_handles()])
    return figure


def best_points(rows: DataFrame) -> DataFrame:
    """By number of parameters, rising, the operating point with the best mean over seeds: columns
    `params`, `mean` and `deviation` (%, sample standard deviation; 0 of one seed)."""
    quality = 100 * rows["relative_value"]
    groups = quality.groupby([rows["params"], rows["knob_value"].fillna(0)])
    points = groups.agg(mean="mean", deviation="std").fillna({"deviation": 0.0}).reset_index()
    return points.loc[points.groupby("params")["mean"].idxmax()].sort_values("params")


def _panel(axes: Axes, tradeoff: DataFrame, panel: Panel, looks: dict[str, style.Look]) -> str:
    """Draw one panel; returns how many seeds it has, as words."""
    rows = of_metric(tradeoff, panel)
    chosen = by_variant(rows, TRADEOFF, panel["task"], panel["variants"])
    dense = by_variant(rows, TRADEOFF, panel["task"], list(DENSE))
    whole = float(next(iter(dense.values()))["params"].iloc[0])
    for name, own in chosen.items():
        _points(axes, best_points(own), whole, looks[label_of(panel, name)])
    for name, own in dense.items():
        _points(axes, best_points(own), whole, None, **dense_marker(name))
    axes.axhline(100, color=style.FAINT, zorder=0, linestyle="--", linewidth=0.9)
    axes.set_xlabel("parameters relative to the dense model")
    axes.set_ylabel(f"{quality_label(panel['metric'])}, at best")
    return count_seeds(chosen | dense)


def _points(
    axes: Axes, points: DataFrame, whole: float, look: style.Look | None, **signs: Any
) -> None:
    share = np.asarray(points["params"] / whole)
    if look is not None:
        signs = look.signs | {"color": look.colour, "linestyle": look.line}
    error = {"yerr": points["deviation"], "elinewidth": 0.8, "capsize": 2}
    axes.errorbar(share, points["mean"], **error, **signs)
