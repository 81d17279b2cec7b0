"""Figures 8a (base models) and 16 (thresholds): how many experts each layer executes.

The differences between layers, and the spread between tokens, are what dynamic-k makes use of
(claim C7).
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from d2dmoe.errors import UserError
from d2dmoe.figures import style
from d2dmoe.figures.select import by_variant, count_seeds
from d2dmoe.figures.style import Look
from d2dmoe.lookup import look_up
from d2dmoe.selection_rules import RULES

TABLE = "results/tables/layers.csv"
TICKS = 13  # at most: more numbers of layers would touch
FEW = 6  # layers: as many panels as there are beside each other are readable
SPREADS = (  # how they are drawn in the legend
    Line2D([], [], color=style.FAINT, alpha=0.4, linewidth=4, label="± deviation of tokens"),
    Line2D([], [], color=style.FAINT, linewidth=0.9, label="± deviation of seeds"),
)


@style.styled
def draw(
    layers: DataFrame,
    task: str,
    title: str,
    variants: list[str],
    labels: dict[str, str],
    looks: dict[str, int],
    values: list[float],
) -> Figure:
    """Mean share of executed experts per layer, one panel per operating point; beside each other
    where layers are few.

    Args:
        layers: rows of `results/tables/layers.csv`; those of FFNs are drawn.
        task: the task drawn.
        title: what the figure calls it.
        variants: compared in each panel, in the legend's order.
        labels: legend texts by variant; a variant without one is labelled by its name.
        looks: of each variant; see `style.look`.
        values: the operating points (τ, k or p), one panel each from top to bottom.

    Raises:
        UserError: a variant, or one of its operating points, is missing in the table.
    """
    if not values:
        raise UserError(f"no operating points of task '{task}' to draw from {TABLE}")
    ffns = layers[layers["role"] == "ffn"]
    chosen = by_variant(ffns, TABLE, task, variants)
    numbers = sorted(set().union(*(rows["layer"] for rows in chosen.values())))
    columns = min(len(values), 3 if len(numbers) <= FEW else 1)
    lines = -(-len(values) // columns)
    height = 0.8 + (1.7 if columns > 1 else 1.15) * lines
    figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(values) :]:
        axes.remove()
    offsets = (np.arange(len(chosen)) - (len(chosen) - 1) / 2) * min(0.2, 0.6 / len(chosen))
    for axes, value in zip(panels, values, strict=False):
        for index, (variant, rows) in enumerate(chosen.items()):
            at = _at(rows, variant, value)
            _profile(axes, per_layer(at), offsets[index], style.look(looks[variant]))
        rules = {knob for rows in chosen.values() for knob in rows["knob"]}
        knobs = sorted({look_up(RULES, rule, "selection rule").symbol for rule in rules})
        axes.set_title(f"{', '.join(knobs)} = {value:g}")
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("layer" if columns > 1 or value == values[-1] else "")
    axes.set_xticks(numbers[:: -(-len(numbers) // TICKS)])
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    axes.set_ylim(0, 102)
    figure.supylabel("executed experts (%)", fontsize=8)
    figure.suptitle(f"Executed experts per layer\n{title}, {count_seeds(chosen)}", fontsize=8)
    handles = [style.handle(labels.get(v, v), style.look(looks[v])) for v in chosen]
    style.legend(figure, [*handles, *SPREADS])
    return figure


def per_layer(rows: DataFrame) -> DataFrame:
    """Executed experts in % of each layer's: mean and sample deviation over seeds (0 for one), and
    the seeds' mean of the deviation over tokens; indexed by layer."""
    shares = rows.assign(
        mean=100 * rows["experts"] / rows["num_experts"],
        tokens=100 * rows["std"] / rows["num_experts"],
    ).groupby("layer")
    seeds = shares["mean"].std().fillna(0.0)
    return DataFrame(
        {"mean": shares["mean"].mean(), "seeds": seeds, "tokens": shares["tokens"].mean()}
    )


def _at(rows: DataFrame, variant: str, value: float) -> DataFrame:
    at = rows[np.isclose(rows["knob_value"].astype(float), value)]
    if at.empty:
        known = ", ".join(f"{v:g}" for v in sorted(rows["knob_value"].unique()))
        raise UserError(
            f"variant '{variant}' has no operating point {value:g} in {TABLE}; it has: {known}"
        )
    return at


def _profile(axes: Axes, profile: DataFrame, offset: float, look: Look) -> None:
    x = profile.index.to_numpy() + offset
    mean, tokens = profile["mean"], profile["tokens"]
    low, high = (mean - tokens).clip(lower=0), (mean + tokens).clip(upper=100)
    axes.vlines(x, low, high, color=look.colour, alpha=0.25, linewidth=3)
    axes.errorbar(
        x, mean, yerr=profile["seeds"], color=look.colour, linestyle=look.line, linewidth=0.8,
        marker=look.marker, elinewidth=0.9, capsize=2,
    )  # fmt: skip
