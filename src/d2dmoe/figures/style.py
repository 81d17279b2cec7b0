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
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

WIDTH = 3.6  # inches: one column of a paper
WIDE = 7.1  # inches: both columns
RC = {
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
}

INK = "#000000"  # the dense models
PAPER = "#ffffff"  # inside of hollow markers
FAINT = "#767676"  # reference lines and notes
# Okabe and Ito's colours, which colour-blind readers tell apart; black is the dense models'.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "<")  # one more than colours: no pair comes back soon
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
    longest = max(len(str(entry.get_label())) for entry in handles)
    columns = (2 if longest <= 24 else 1) * round(figure.get_figwidth() / WIDTH)
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.15 * lines)
    entries = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    for text in entries.get_texts():
        text.set_parse_math(False)  # a user's label may hold $


@styled
def save(figure: Figure, png: Path, pdf: Path) -> None:
    """Save a figure twice. No dates or versions go in: the same figure gives the same bytes."""
    for path in (png, pdf):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, format="png", metadata={"Software": None})
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    figure.savefig(pdf, format="pdf", metadata=undated)
