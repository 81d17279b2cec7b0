"""Wall-clock time over the share of the experts that run: of layers (figures 5 and 11, claim C9),
of whole models and of decoding."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2dmoe.errors import DataError
from d2dmoe.figures import style
from d2dmoe.figures.style import Look
from d2dmoe.lookup import look_up
from d2dmoe.tables import LAYER, of_first_layer

MACHINE = ["device", "torch", "triton"]
POINT = ["fraction", "backend", "median_ms", "p20_ms", "p80_ms", "peak_mb"]
# A dense form is a black line without markers: it has one time, whatever the share.
BACKENDS = {  # names in the legend, and looks
    "dense_eager": ("dense, eager", Look(style.INK, "", style.LINES[0])),
    "dense_addmm": ("dense, fused activation (addmm)", Look(style.INK, "", style.LINES[1])),
    "dense_compiled": ("dense, compiled", Look(style.INK, "", style.LINES[2])),
    "dense_fp8": ("dense, fp8", Look(style.INK, "", style.LINES[3])),
    "mlp_equal_flops": ("dense of equal FLOPs", style.look(2)),
    "dynamic_k": ("dynamic-k", style.look(0)),
    "dynamic_k_experts": ("dynamic-k, experts alone", style.look(1)),
    "dynamic_k_int8": ("dynamic-k, int8 experts", style.look(4)),
    "dynamic_k_deterministic": ("dynamic-k, deterministic", style.look(3)),
}

MASKS = {  # which experts run, in words
    "bernoulli": "tokens choose independently",
    "clustered": "neighbours choose alike",
    "converted": "as a trained model chooses",
    "router": "as the router chooses",
}


@style.styled
def draw(table: pd.DataFrame, subject: str = "One layer", layers: str = "all") -> Figure:
    """A panel per shape, number format and kind of mask: the median with its 20 and 80 % quantiles.

    Args:
        table: rows of one of `results/benchmarks/`: `cpu.csv`, `layer.csv`, `model.csv` or
            `decode.csv`.
        subject: what was timed, for the title.
        layers: of a table of layers `all`, the `first` that it lists, or the `others`.
    """
    rows = table
    if "model" not in rows and (missing := {*LAYER} - {*rows.columns}):
        raise DataError(f"the table has neither a column model nor {sorted(missing)}")
    if layers != "all":
        rows = rows[of_first_layer(rows) == (layers == "first")]
    shapes = [column for column in rows.columns if column not in MACHINE + POINT]
    groups = list(rows.groupby(shapes, sort=False))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(style.WIDTH * columns, 0.4 + 2.3 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (shape, group) in zip(panels, groups, strict=False):
        _panel(axes, group)
        axes.set_title(_title(dict(zip(shapes, shape, strict=True))))
    figure.suptitle(f"{subject} on {rows['device'].iloc[0]}", fontsize=9)
    timed = set(rows["backend"])
    handles = [style.handle(*sign) for name, sign in BACKENDS.items() if name in timed]
    if spare := panels[len(groups) :]:
        spare[0].set_axis_off()
        spare[0].legend(handles=handles, loc="center")
    else:
        style.legend(figure, handles)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    for backend, points in rows.groupby("backend", sort=False):
        _, look = look_up(BACKENDS, backend, "backend")
        signs = {"color": look.colour, "linestyle": look.line}
        if not look.marker:
            axes.axhline(points["median_ms"].median(), **signs, linewidth=0.9)
            continue
        points = points.sort_values("fraction")
        x = 100 * points["fraction"]
        axes.fill_between(x, points["p20_ms"], points["p80_ms"], color=look.colour, alpha=0.2)
        axes.plot(x, points["median_ms"], marker=look.marker, **signs)
    axes.set_xlim(0, 102)
    # The slow variant would press all else together; it may leave the panel.
    top = rows.loc[rows["backend"] != "dynamic_k_deterministic", "p80_ms"].max()
    axes.set_ylim(0, 1.1 * top)
    axes.set_xlabel("executed experts (%)")
    axes.set_ylabel("time (ms)")


def _title(shape: dict) -> str:
    experts = f"{shape['num_experts']} × {shape['expert_size']}"
    if "model" in shape:
        context = f" after {shape['context']} tokens" if shape.get("context") else ""
        called = f"{shape['model']}, batch {shape['batch']}{context}, experts {experts}"
        return f"{called}\n{shape['dtype']}, {_masks(shape)}"
    layer = f"{shape['tokens']:,} tokens, d_model {shape['d_model']:,}, experts {experts}"
    return f"{layer}\n{shape['activation']}, {shape['dtype']}, {_masks(shape)}"


def _masks(shape: dict) -> str:
    return MASKS.get(shape["mask"], f"{shape['mask']} masks")
