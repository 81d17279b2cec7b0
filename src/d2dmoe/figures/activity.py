"""Figure 2b: how many hidden neurons a token activates, with and without sparsity enforcement.

The spread between tokens is what a static choice of k cannot follow (claim C4).
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from pandas import DataFrame

from d2dmoe.figures import style
from d2dmoe.figures.select import by_variant, count_seeds
from d2dmoe.figures.style import Look

TABLE = "results/tables/activity.csv"
BINS = 50  # at most, over 0 to 100 %


@style.styled
def draw(
    activity: DataFrame,
    task: str,
    title: str,
    variants: list[str],
    labels: dict[str, str],
    looks: dict[str, int],
) -> Figure:
    """Histograms of active neurons per token, one panel per layer.

    Args:
        activity: rows of `results/tables/activity.csv`.
        task: the task drawn.
        title: what the figure calls it.
        variants: overlaid in each panel, in the legend's order.
        labels: legend texts by variant; a variant without one is labelled by its name.
        looks: of each variant; see `style.look`.

    Raises:
        UserError: a variant is missing in the table.
    """
    chosen = by_variant(activity, TABLE, task, variants)
    layers = sorted(set().union(*(rows["layer"] for rows in chosen.values())))
    columns = 3 if len(layers) in (3, 5, 6) or len(layers) > 8 else min(len(layers), 2)
    lines = -(-len(layers) // columns)
    figure = Figure(figsize=(style.WIDTH, 0.8 + 1.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, layer in zip(panels, layers, strict=False):
        axes.set_title(f"layer {layer}")
        for variant, rows in chosen.items():
            _histogram(axes, rows[rows["layer"] == layer], style.look(looks[variant]))
    for axes in panels[len(layers) :]:
        axes.remove()
    for axes in panels[: len(layers)][-columns:]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("active (%)" if columns == 3 else "active neurons (%)")
    for axes in panels[::columns]:
        axes.set_ylabel("tokens (%)")
    panels[0].set_xlim(left=0)
    panels[0].set_ylim(bottom=0)
    figure.suptitle(f"Active neurons per token\n{title}, {count_seeds(chosen)}", fontsize=8)
    means = Line2D([], [], color=style.FAINT, marker="o", label="mean over tokens")
    entries = [_handle(labels.get(v, v), style.look(looks[v])) for v in chosen]
    style.legend(figure, [*entries, means])
    return figure


def histogram(rows: DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
    """One layer's histogram, mean over seeds.

    Every bin holds the same number of possible counts, so that no bin is full by rounding alone.

    Returns:
        Bin edges in % of the neurons [bins + 1], share of tokens per bin in % [bins], and the mean
        share of active neurons in %.
    """
    d_ff = int(rows["d_ff"].iloc[0])
    width = -(-d_ff // BINS)  # neurons per bin
    edges = np.arange(0, d_ff + width + 1, width) - 0.5  # neurons; the last covers d_ff
    seeds = [seed for _, seed in rows.groupby("seed")]
    counts = [np.histogram(s["active"], edges, weights=s["tokens"])[0] for s in seeds]
    shares = np.mean([100 * c / c.sum() for c in counts], axis=0)
    means = [np.average(s["active"], weights=s["tokens"]) for s in seeds]
    return 100 * edges / d_ff, shares, 100 * float(np.mean(means)) / d_ff


def _histogram(axes: Axes, rows: DataFrame, look: Look) -> None:
    if rows.empty:  # another variant has this layer, this one has not
        return
    edges, shares, mean = histogram(rows)
    last = int(np.flatnonzero(shares)[-1]) + 1  # leave the empty right end out
    bars: dict[str, Any] = {"facecolor": (look.colour, 0.25), "edgecolor": look.colour}
    bars |= {"linestyle": look.line, "linewidth": 0.8}
    axes.stairs(shares[:last], edges[: last + 1], fill=True, **bars)
    axes.axvline(mean, color=look.colour, linestyle=look.line, linewidth=1.0)
    top: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 5}
    axes.plot(mean, 1, color=look.colour, marker=look.marker, **top)


def _handle(label: str, look: Look) -> Patch:
    return Patch(label=label, facecolor=(look.colour, 0.25), edgecolor=look.colour, ls=look.line)
