"""Cost against quality: figures 2a (sparsity of the base), 2c (selection rules), 4 (methods), 6, 7,
12 (pruned, quantised and distilled models), 9a (phases), 9b (sparsity levels), 9c (activations), 9d
(expert sizes); and the ablations of routers and splits.

Seeds reach different costs at the same operating point. So each seed's curve is interpolated on one
grid of costs, and mean and standard deviation are taken across seeds at equal cost. Models with one
operating point, like compressed dense ones, are a marker with their deviation.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, concat

from d2dmoe.figures import style
from d2dmoe.figures.dense import DENSE, OUTLINE, dense_handles, dense_marker
from d2dmoe.figures.select import (
    INVERTED,
    TRADEOFF,
    Panel,
    by_variant,
    count_seeds,
    label_of,
    looks_of,
    of_metric,
    quality_label,
)
from d2dmoe.figures.style import Look

REFERENCES: dict[int, dict[str, Any]] = {  # %: how the line is drawn
    100: {"linestyle": "--", "linewidth": 0.9, "label": "better dense (100 %)"},
    99: {"linestyle": "-", "linewidth": 0.5, "label": "99 % of it"},
}
HOLLOW = "hollow: trained no further"  # in the legend
UNITS = {"TFLOPs": 1e12, "GFLOPs": 1e9, "MFLOPs": 1e6, "kFLOPs": 1e3, "FLOPs": 1.0}
GRID = 200  # costs between the ends of a mean curve, besides the measured ones
LOWEST = 95.0  # %: cheap points that collapse must not flatten the rest
LOWEST_INVERTED = 85.0  # %: of these metrics, which fall more slowly
NEAR = 2.0  # %: a variant whose best is not this far above the axis moves its end down
BELOW = 5.0  # %: to this much below that best
COLLAPSED = 25.0  # %: a variant whose best is this much below the best of all lies below the axis


@style.styled
def draw(tradeoff: DataFrame, panels: list[Panel], title: str) -> Figure:
    """Quality relative to the dense model over FLOPs relative to it.

    One panel makes a figure of one column's width, several one of two columns' with a common
    legend, in which variants of the same label share one look, the first one's. Beyond the relative
    scales, a single panel has the absolute ones: quality on the right, FLOPs above.

    Args:
        tradeoff: rows of `results/tables/tradeoff.csv`.
        panels: what each panel shows, line by line.
        title: the figure's title; tasks and numbers of seeds follow it.

    Raises:
        UserError: a metric, a variant or a dense model is missing in the table.
    """
    looks = looks_of(panels)
    alone = len(panels) == 1
    figure, cells = style.grid(len(panels), 0.2 + 2.7 * -(-len(panels) // 2))
    for axes, panel in zip(cells, panels, strict=True):
        seeds = _panel(axes, tradeoff, panel, looks)
        heading = f"{panel['title']}, {seeds}"
        axes.set_title(f"{title}\n{heading}" if alone else heading)
    if not alone:
        figure.suptitle(title, fontsize=9)
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.08, h_pad=0.08)  # inches: keep panels apart
    style.legend(figure, _handles(looks, _curved(tradeoff, panels)))
    return figure


def mean_curve(rows: DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds at equal cost, over the costs that every seed reaches.

    Returns:
        FLOPs ratios, mean and sample standard deviation of the relative quality in %; each
        [points]. Empty where the seeds have no cost in common; the deviation of one seed is 0.
    """
    # A seed's points of equal cost count as one, of their mean quality.
    curves = [
        seed.groupby("flops_ratio")["relative_value"].mean() for _, seed in rows.groupby("seed")
    ]
    low, high = max(c.index[0] for c in curves), min(c.index[-1] for c in curves)
    if low > high:
        return np.empty(0), np.empty(0), np.empty(0)
    measured = np.concatenate([c.index for c in curves])
    inside = measured[(low <= measured) & (measured <= high)]
    # With the measured costs in the grid, the mean of the seeds' polylines is exact.
    ratios = np.union1d(np.linspace(low, high, GRID), inside)
    quality = 100 * np.stack([np.interp(ratios, c.index, c) for c in curves])  # [seeds, points]
    deviation = quality.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(ratios)
    return ratios, quality.mean(0), deviation


def _curved(tradeoff: DataFrame, panels: list[Panel]) -> set[str]:
    """The labels that stand for a curve in some panel, not only for single points."""
    return {
        label_of(panel, variant)
        for panel in panels
        for variant in panel["variants"]
        if not _single(of_metric(tradeoff, panel).query("variant == @variant"))
    }


def _single(rows: DataFrame) -> bool:
    """Whether a variant has one operating point."""
    return rows.groupby("seed").size().max() == 1


def _panel(axes: Axes, tradeoff: DataFrame, panel: Panel, looks: dict[str, Look]) -> str:
    """Draw one panel.

    Returns:
        How many seeds it has, as words.
    """
    rows = of_metric(tradeoff, panel)
    chosen = by_variant(rows, TRADEOFF, panel["task"], panel["variants"])
    dense = by_variant(rows, TRADEOFF, panel["task"], list(DENSE))
    for variant, points in chosen.items():
        label = label_of(panel, variant)
        if _single(points):
            _point(axes, points, label=label, **_single_marker(looks[label]))
        else:
            _curve(axes, points, label, looks[label])
    for name, points in dense.items():
        _point(axes, points, **dense_marker(name))
    for quality, line in REFERENCES.items():
        axes.axhline(quality, color=style.FAINT, zorder=0, **line)
    note = _limit(axes, chosen | dense, panel)
    x_label = "FLOPs relative to the dense model (multiply–add = 2)" + note
    axes.set_xlabel(x_label)
    axes.set_ylabel(quality_label(panel["metric"]))
    _absolute(axes, concat(dense.values()), panel["metric"])
    return count_seeds(chosen | dense)


def _absolute(axes: Axes, dense: DataFrame, metric: str) -> None:
    """FLOPs per sample above, and the metric on the right: 100 % are the mean over seeds of the
    better dense model."""
    flops = float((dense["flops"] / dense["flops_ratio"]).mean())
    unit = next(name for name, size in UNITS.items() if flops >= size)
    ratio = flops / UNITS[unit]
    above: Any = (lambda x: x * ratio, lambda x: x / ratio)
    axes.secondary_xaxis("top", functions=above).set_xlabel(f"{unit} per sample")
    related, inverted = dense["relative_value"], metric in INVERTED
    best = float((dense["value"] * related if inverted else dense["value"] / related).mean())
    right: Any = (lambda y: y * best / 100, lambda y: 100 * y / best)
    if inverted:
        right = (lambda y: 100 * best / np.maximum(y, 1e-9),) * 2  # it is its own inverse
    axes.secondary_yaxis("right", functions=right).set_ylabel(metric)


def _curve(axes: Axes, rows: DataFrame, label: str, look: Look) -> None:
    ratios, mean, deviation = mean_curve(rows)
    axes.plot(ratios, mean, color=look.colour, linestyle=look.line, label=label)
    if rows["seed"].nunique() > 1:
        band: dict[str, Any] = {"color": look.colour, "alpha": 0.18, "linewidth": 0}
        axes.fill_between(ratios, mean - deviation, mean + deviation, **band)
    points = _points(rows)
    axes.plot(points["flops_ratio"], 100 * points["relative_value"], **_marker(look))


def _points(rows: DataFrame) -> DataFrame:
    """Operating points: mean over seeds of cost and quality; models without a knob have one."""
    return rows.groupby("knob_value", dropna=False)[["flops_ratio", "relative_value"]].mean()


def _point(axes: Axes, rows: DataFrame, **marker: Any) -> None:
    """A single operating point, with the sample standard deviation over seeds."""
    quality = 100 * rows["relative_value"]
    deviation = quality.std() if len(quality) > 1 else 0.0
    error = {"yerr": deviation, "elinewidth": 0.8, "capsize": 2, "ecolor": marker["color"]}
    axes.errorbar(rows["flops_ratio"].mean(), quality.mean(), **error, **marker)


def _marker(look: Look) -> dict[str, Any]:
    return {"linestyle": "", **look.signs}


def _single_marker(look: Look) -> dict[str, Any]:
    outline = {} if look.hollow else OUTLINE
    return _marker(look) | outline | {"markersize": 5.5, "zorder": 5}


def _handles(looks: dict[str, Look], curved: set[str]) -> list[Line2D]:
    """The legend's entries."""
    ours = [
        style.handle(label, look)
        if label in curved
        else Line2D([], [], label=label, **_single_marker(look))
        for label, look in looks.items()
    ]
    lines = [Line2D([], [], color=style.FAINT, **line) for line in REFERENCES.values()]
    hollow = style.Look(style.FAINT, "o", "", hollow=True)
    note = [style.handle(HOLLOW, hollow)] if any(look.hollow for look in looks.values()) else []
    return ours + dense_handles() + lines + note


def _limit(axes: Axes, tables: dict[str, DataFrame], panel: Panel) -> str:
    """Keep the range of interest readable, and the best part of every variant visible that does not
    collapse as a whole.

    Returns:
        What lies below the axis, as lines under its label.
    """
    quality = {name: 100 * rows["relative_value"] for name, rows in tables.items()}
    best = {name: q.max() for name, q in quality.items()}
    highest = max(best.values())
    collapsed = {name: q for name, q in best.items() if q < highest - COLLAPSED}
    worst = min(q.min() for q in quality.values())
    poorest = min(best[name] for name in best.keys() - collapsed)
    lowest = LOWEST_INVERTED if panel["metric"] in INVERTED else LOWEST
    bottom = max(worst - 0.5, lowest if poorest >= lowest + NEAR else poorest - BELOW)
    axes.set_ylim(bottom, max(100, highest) + 0.8)
    visible = [rows["flops_ratio"][quality[name] >= bottom] for name, rows in tables.items()]
    left, right = min(x.min() for x in visible), max(x.max() for x in visible)
    margin = 0.03 * (right - left) or 0.03  # where the dense models alone are visible
    axes.set_xlim(left - margin, right + margin)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    below = sum(int((100 * _points(r)["relative_value"] < bottom).sum()) for r in tables.values())
    lines = [f"{below} operating point{'s' * (below > 1)} below the axis"] if below else []
    lines += [
        f"all of {label_of(panel, v)} is below: at most {q:.0f} %" for v, q in collapsed.items()
    ]
    return "".join(f"\n{line}" for line in lines)
