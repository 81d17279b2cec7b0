"""Cost against quality: figures 2a (sparsity of the base), 2c (selection rules), 4 (methods) and
9d (expert sizes).

Seeds reach different costs at the same operating point. So each seed's curve is interpolated on one
grid of costs, and mean and standard deviation are taken across seeds at equal cost.
"""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from d2dmoe.figures import style
from d2dmoe.figures.select import by_variant, count_seeds
from d2dmoe.figures.style import Look

TABLE = "results/tables/tradeoff.csv"
DENSE = {
    "dense": {"marker": "*", "markersize": 9},
    "dense_finetuned": {"marker": "X", "markersize": 7},
}
DENSE_LABELS = {"dense": "dense", "dense_finetuned": "dense, fine-tuned"}
GRID = 200  # costs between the ends of a mean curve, besides the measured ones
LOWEST = 85.0  # %: cheap points that collapse must not flatten the rest


@style.styled
def draw(
    tradeoff: DataFrame, task: str, variants: list[str], labels: dict[str, str], title: str
) -> Figure:
    """Quality relative to the dense model over FLOPs relative to it.

    Args:
        tradeoff: rows of `results/tables/tradeoff.csv`.
        task: the task drawn.
        variants: the curves, in the legend's order; both dense models are always drawn.
        labels: legend texts by variant; a variant without one is labelled by its name.
        title: first line of the title; the task and the number of seeds form the second.

    Raises:
        UserError: a variant or a dense model is missing in the table.
    """
    chosen = by_variant(tradeoff, TABLE, task, variants)
    dense = by_variant(tradeoff, TABLE, task, list(DENSE))
    labels = DENSE_LABELS | labels
    figure = Figure(figsize=(style.WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    handles = [
        _curve(axes, rows, labels.get(variant, variant), style.look(index))
        for index, (variant, rows) in enumerate(chosen.items())
    ]
    handles += [_dense(axes, rows, labels[name], name) for name, rows in dense.items()]
    handles += _references(axes)
    below = _limit(axes, chosen | dense)
    metric = chosen[variants[0]]["metric"].iloc[0]
    note = f"\n{below} operating point{'s' * (below > 1)} below the axis" if below else ""
    axes.set_xlabel("FLOPs relative to the dense model (multiply–add = 2)" + note)
    axes.set_ylabel(f"{metric} relative to dense (%)")
    axes.set_title(f"{title}\n{task}, {count_seeds(chosen | dense)}")
    style.legend(figure, handles)
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


def _curve(axes: Axes, rows: DataFrame, label: str, look: Look) -> Line2D:
    ratios, mean, deviation = mean_curve(rows)
    axes.plot(ratios, mean, color=look.colour, linestyle=look.line, label=label)
    if rows["seed"].nunique() > 1:
        band = {"color": look.colour, "alpha": 0.18, "linewidth": 0}
        axes.fill_between(ratios, mean - deviation, mean + deviation, **band)
    points = _points(rows)
    marker = {"color": look.colour, "marker": look.marker}
    axes.plot(points["flops_ratio"], 100 * points["relative_value"], linestyle="", **marker)
    return Line2D([], [], linestyle=look.line, label=label, **marker)


def _points(rows: DataFrame) -> DataFrame:
    """Operating points: mean over seeds of cost and quality."""
    return rows.groupby("knob_value")[["flops_ratio", "relative_value"]].mean()


def _dense(axes: Axes, rows: DataFrame, label: str, name: str) -> Line2D:
    quality = 100 * rows["relative_value"]
    deviation = quality.std() if len(quality) > 1 else 0.0
    marker = {"color": style.INK, "linestyle": "", "markeredgewidth": 0.4} | DENSE[name]
    marker |= {"markeredgecolor": "white", "zorder": 4}
    error = {"elinewidth": 0.8, "capsize": 2, "ecolor": style.INK}
    axes.errorbar(rows["flops_ratio"].mean(), quality.mean(), yerr=deviation, **error, **marker)
    return Line2D([], [], label=label, **marker)


def _references(axes: Axes) -> list[Artist]:
    line = {"color": style.FAINT, "zorder": 0}
    return [
        axes.axhline(100, linestyle="--", linewidth=0.9, label="better dense (100 %)", **line),
        axes.axhline(99, linestyle="-", linewidth=0.5, label="99 % of it", **line),
    ]


def _limit(axes: Axes, tables: dict[str, DataFrame]) -> int:
    """Keep the range of interest readable, and the best part of every variant visible.

    Returns:
        How many operating points lie below the axis.
    """
    quality = {name: 100 * rows["relative_value"] for name, rows in tables.items()}
    worst = min(q.min() for q in quality.values())
    lowest = min(LOWEST, min(q.max() for q in quality.values()) - 5)
    bottom = max(worst - 0.5, lowest)
    axes.set_ylim(bottom, max(100, max(q.max() for q in quality.values())) + 0.8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return sum(int((100 * _points(r)["relative_value"] < bottom).sum()) for r in tables.values())
