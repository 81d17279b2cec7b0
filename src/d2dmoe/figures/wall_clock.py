"""Wall-clock time over the share of the experts that run: of a layer (figures 5 and 11, claim C9),
of whole models and of decoding."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2dmoe.figures import style

MACHINE = ["device", "torch", "triton"]
POINT = ["fraction", "backend", "median_ms", "p20_ms", "p80_ms", "peak_mb"]


@style.styled
def draw(table: Path, subject: str = "One layer") -> Figure:
    """A panel per shape, number format and kind of mask: the median with its 20 and 80 % quantiles.

    Args:
        table: one of `results/benchmarks/`: `cpu.csv`, `layer.csv`, `model.csv` or `decode.csv`.
        subject: what was timed, for the title.
    """
    rows = pd.read_csv(table)
    shapes = [column for column in rows.columns if column not in MACHINE + POINT]
    groups = list(rows.groupby(shapes, sort=False))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(style.WIDTH * columns, 0.4 + 2.3 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    backends = list(dict.fromkeys(rows["backend"]))
    looks = {backend: _look(backend, index) for index, backend in enumerate(backends)}
    for axes, (shape, group) in zip(panels, groups, strict=False):
        _panel(axes, group, looks)
        axes.set_title(_title(dict(zip(shapes, shape, strict=True))))
    for axes in list(panels):  # those left over
        axes.set_axis_off()
    figure.suptitle(f"{subject} on {rows['device'].iloc[0]}")
    style.legend(figure, [style.handle(b.replace("_", " "), looks[b]) for b in backends])
    return figure


def _look(backend: str, index: int) -> style.Look:
    """A dense layer is a line without markers: it has one time, whatever the share."""
    look = style.look(index)
    return replace(look, marker="") if backend.startswith("dense") else look


def _panel(axes: Axes, rows: pd.DataFrame, looks: dict[str, style.Look]) -> None:
    for backend, points in rows.groupby("backend", sort=False):
        look = looks[backend]
        signs = {"color": look.colour, "linestyle": look.line}
        if not look.marker:
            axes.axhline(points["median_ms"].median(), **signs, linewidth=0.9)
            continue
        points = points.sort_values("fraction")
        x = 100 * points["fraction"]
        axes.fill_between(x, points["p20_ms"], points["p80_ms"], color=look.colour, alpha=0.2)
        axes.plot(x, points["median_ms"], marker=look.marker, **signs)
    axes.set_xlim(0, 102)
    axes.set_ylim(0)
    axes.set_xlabel("executed experts (%)")
    axes.set_ylabel("ms")


def _title(shape: dict) -> str:
    experts = f"{shape['num_experts']} × {shape['expert_size']}"
    if "model" in shape:
        context = f" after {shape['context']} tokens" if shape.get("context") else ""
        called = f"{shape['model']}, batch {shape['batch']}{context}, experts {experts}"
        return f"{called}\n{shape['dtype']}, {shape['mask']} mask"
    layer = f"{shape['tokens']} tokens, d_model {shape['d_model']}, experts {experts}"
    return f"{layer}\n{shape['activation']}, {shape['dtype']}, {shape['mask']} mask"
