"""One look for all figures: readable in print at one column's width, without relying on colour.

Figures are made by the object-oriented interface; nothing here touches pyplot's global state, and
a user's own matplotlibrc has no influence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

WIDTH = 3.6  # inches: one column of a paper
WIDE = 7.1  # inches: both columns
POINTS = 72  # in an inch
RC: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: text stays text
    "text.parse_math": False,  # a user's label may hold $
}

INK = "#000000"  # the dense models
PAPER = "#ffffff"  # inside of hollow markers
FAINT = "#767676"  # reference lines and notes
# Colours of Okabe, Ito and Tol, which colour-blind readers tell apart; as many as a task's main
# variants, of which there are about ten; black is the dense models'.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#882255"),
    *("#999933", "#8C564B", "#117733", "#56B4E9", "#332288"),
)
# Numbers without a common divisor: no two signs come back together soon.
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (2.5, 1)))

styled = matplotlib.style.context(["default", RC])  # a decorator for functions that draw


@dataclass(frozen=True)
class Look:
    """What tells one variant from the others: three signs, each enough on its own."""

    colour: str
    marker: str
    line: Any  # a matplotlib line style
    hollow: bool = False  # whether its markers are: of methods that train nothing

    @property
    def signs(self) -> dict[str, Any]:
        """Colour and marker, as matplotlib's lines take them."""
        filled = PAPER if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": filled}


def look(index: int, hollow: bool = False) -> Look:
    """One of the looks; a variant has the same in all figures."""
    return Look(
        COLOURS[index % len(COLOURS)],
        MARKERS[index % len(MARKERS)],
        LINES[index % len(LINES)],
        hollow,
    )


def handle(label: str, look: Look) -> Line2D:
    """The legend's entry of a variant that is drawn as a line with markers."""
    return Line2D([], [], label=label, linestyle=look.line, **look.signs)


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend below the panels, where it hides nothing; the figure grows by its height."""
    columns = _columns([str(entry.get_label()) for entry in handles], figure.get_figwidth())
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _columns(labels: Sequence[str], width: float) -> int:
    """As many as fit into a figure's width in inches, up to two for each of the page's columns;
    entries stand one below the other."""
    size = RC["legend.fontsize"]
    # In points: a handle, the space between it and its text, and that to the next column.
    beside = size * (RC["legend.handlelength"] + 0.8 + 2.0)
    font = FontProperties(size=size)
    widths = [text_to_path.get_text_width_height_descent(x, font, False)[0] for x in labels]
    for columns in range(min(len(labels), 2 * round(width / WIDTH)), 1, -1):
        lines = -(-len(labels) // columns)
        widest = [max(widths[i : i + lines]) for i in range(0, len(labels), lines)]
        if sum(widest) + columns * beside - size <= POINTS * width:
            return columns
    return 1


def grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels, two side by side, or of one in a column's width; `height` in inches, a
    legend apart."""
    columns, lines = min(max(panels, 1), 2), -(-max(panels, 1) // 2)
    figure = Figure(figsize=(WIDTH if columns == 1 else WIDE, height), layout="constrained")
    cells = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in cells[max(panels, 1) :]:
        axes.remove()
    return figure, cells[:panels]


@styled
def save(figure: Figure, png: Path, pdf: Path) -> None:
    """Save a figure twice. No dates or versions go in: the same figure gives the same bytes."""
    for path in (png, pdf):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, format="png", metadata={"Software": None})
    figure.set_layout_engine(None)  # it is laid out
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    figure.savefig(pdf, format="pdf", metadata=undated)
