"""What is saved at 99 % of the dense quality, beside what could be at most.

A conversion of the FFNs saves no more than their share of the cost, less its routers' cost. So a
saving says little without that bound, nor do two models with unlike shares compare.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from pandas import DataFrame

from d2dmoe.figures import style
from d2dmoe.figures.select import by_variant
from d2dmoe.figures.style import Look
from d2dmoe.formulas import Transformer

SUMMARY = "results/tables/summary.csv"
KEPT = "flops_ratio_at_99"
SHARE = "#d9d9d9"
LANE = 0.13  # inches of height for each variant
ROW = 0.16  # and for the space between rows
# The paper's models, with the tokens of a sample that it has them read; output layers of all words.
ORIGINALS = {
    "ViT-B/16": Transformer(
        tokens=197, layers=12, d_model=768, d_ff=3072,
        outside=2 * 196 * 768 * 768 + 2 * 768 * 1000,  # of patches of 16 × 16 × 3, of 1,000 classes
    ),
    "BERT-base": Transformer(tokens=128, layers=12, d_model=768, d_ff=3072),
    "GPT2-base": Transformer(tokens=1024, layers=12, d_model=768, d_ff=3072, classes=50257),
    "Gemma-2B": Transformer(
        tokens=1024, layers=18, d_model=2048, d_ff=16384, gated=True, d_kv=256, classes=256000
    ),
}  # fmt: skip


class Row(TypedDict):
    """What is drawn of a task."""

    task: str
    metric: str  # of the quality that is kept
    variants: list[str]  # conversions, in the legend's order
    labels: dict[str, str]
    looks: dict[str, int]  # of each variant; see `style.look`
    title: str  # what the figure calls the task


class Bounds(NamedTuple):
    """Shares of the dense model's cost."""

    ffns: float
    saved: float  # where no expert runs: what remains are the routers, and what is not converted


@style.styled
def draw(
    rows: list[Row],
    summary: DataFrame | None = None,
    tradeoff: DataFrame | None = None,
    layers: DataFrame | None = None,
) -> Figure:
    """A line for each task, with a mark for each of its conversions, and one for each original.

    Args:
        rows: the tasks, from top to bottom; the tables may be left out where there are none.
        summary: rows of `results/tables/summary.csv`.
        tradeoff: rows of `results/tables/tradeoff.csv`, of which costs are taken.
        layers: rows of `results/tables/layers.csv`, the experts that they are of.

    Raises:
        UserError: a variant is missing in a table.
    """
    lanes = [len(row["variants"]) for row in rows] + [1] * len(ORIGINALS)
    heights = np.array(lanes) * LANE + ROW
    figure = Figure(figsize=(style.WIDTH, heights.sum() + 0.75), layout="constrained")
    axes = figure.subplots()
    edges = np.concatenate([[0], np.cumsum(heights)])  # inches from above
    for row, top in zip(rows, edges, strict=False):
        assert summary is not None and tradeoff is not None and layers is not None
        _row(axes, row, top + ROW / 2, summary, tradeoff, layers)
    for model, top in zip(ORIGINALS.values(), edges[len(rows) :], strict=False):
        _share(axes, model.ffn_share, top + ROW / 2, LANE)
    names = [f"{name}, {model.tokens:,} tokens" for name, model in ORIGINALS.items()]
    centres = (edges[:-1] + edges[1:]) / 2
    axes.set_yticks(centres, [*(row["title"] for row in rows), *names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(edges[-1], 0)
    axes.set_xlim(-4, 100)  # routers may cost more than is saved
    axes.axhline(edges[len(rows)], color=style.FAINT, linewidth=0.5)
    axes.set_xlabel("share of the dense model's FLOPs (%)")
    title = "Saved at 99 % of the better dense quality,\nand what can be saved at most"
    figure.suptitle(title, fontsize=8)
    style.legend(figure, _handles(rows))
    return figure


def bounds(points: DataFrame, layers: DataFrame) -> Bounds:
    """What a conversion's operating points tell of its model's cost, which is linear in the experts
    executed: what no expert accounts for remains where none runs.

    Args:
        points: rows of the trade-off, of one variant and metric.
        layers: the variant's rows of executed experts.

    Returns:
        NaN where there are too few operating points to tell.
    """
    keys = ["seed", "knob_value"]
    cost = points.set_index(keys)["flops_ratio"]
    for role in (layers["role"], layers["role"].eq("ffn").map({True: "ffn", False: "projection"})):
        sums = layers.assign(role=role).groupby([*keys, "role"])[["experts", "num_experts"]].sum()
        executed = sums["experts"].unstack("role")
        design = executed.reindex(cost.index).assign(remaining=1.0).dropna()
        if np.linalg.matrix_rank(design) == design.shape[1]:
            found = np.linalg.lstsq(design, cost[design.index], rcond=None)[0]
            each = dict(zip(design, found, strict=True))
            experts = sums["num_experts"].unstack("role")["ffn"].iloc[0]
            return Bounds(each["ffn"] * experts, 1 - each["remaining"])
    return Bounds(float("nan"), float("nan"))


def _row(
    axes: Axes,
    row: Row,
    top: float,
    summary: DataFrame,
    tradeoff: DataFrame,
    layers: DataFrame,
) -> None:
    """One task's lanes, the first at `top`."""
    own = [table[table["metric"] == row["metric"]] for table in (summary, tradeoff)]
    names = row["variants"]
    kept = by_variant(own[0], SUMMARY, row["task"], names)
    points = by_variant(own[1], "results/tables/tradeoff.csv", row["task"], names)
    executed = by_variant(layers, "results/tables/layers.csv", row["task"], names)
    found = {name: bounds(points[name], executed[name]) for name in names}
    share = next((x.ffns for x in found.values() if np.isfinite(x.ffns)), float("nan"))
    _share(axes, share, top, LANE * len(names))
    for place, name in enumerate(names):
        y, look = top + (place + 0.5) * LANE, style.look(row["looks"][name])
        _saved(axes, kept[name].iloc[0], found[name].saved, y, look)


def _share(axes: Axes, share: float, top: float, height: float) -> None:
    axes.barh(top + height / 2, 100 * share, height, color=SHARE, zorder=0)


def _saved(axes: Axes, kept: Any, bound: float, y: float, look: Look) -> None:
    """A variant's saving with its interval, and its bound."""
    axes.plot(100 * bound, y, color=look.colour, **BOUND)
    saved, *ends = (100 * (1 - kept[f"{KEPT}{end}"]) for end in ("", "_high", "_low"))
    if not np.isfinite(saved):
        axes.plot(0, y, color=look.colour, **NEVER)
        return
    axes.plot([saved, 100 * bound], [y, y], color=look.colour, linewidth=0.5, linestyle=":")
    axes.plot(ends, [y, y], color=look.colour, linewidth=1.2)
    axes.plot(saved, y, color=look.colour, marker=look.marker, zorder=3)


BOUND: dict[str, Any] = {"marker": "|", "markersize": 8, "markeredgewidth": 1.4, "linestyle": ""}
NEVER: dict[str, Any] = {"marker": "x", "markersize": 4, "linestyle": "", "clip_on": False}


def _handles(rows: Sequence[Row]) -> list[Any]:
    looks = {
        row["labels"].get(name, name): style.look(row["looks"][name])
        for row in rows
        for name in row["variants"]
    }
    of_variants = [
        Line2D([], [], label=label, color=look.colour, marker=look.marker, linestyle="")
        for label, look in looks.items()
    ]
    general: list[Any] = [Patch(color=SHARE, label="the FFNs' share")]
    if rows:
        general.append(Line2D([], [], color=style.INK, label="bound: no expert runs", **BOUND))
        general.append(Line2D([], [], color=style.INK, label="99 % not kept", **NEVER))
    return of_variants + general
