"""How the two dense models are drawn, which every panel of operating points shows."""

from typing import Any

from matplotlib.lines import Line2D

from d2dmoe.config.variant import DENSE_VARIANTS
from d2dmoe.figures import style

OUTLINE = {"markeredgecolor": "white", "markeredgewidth": 0.4}  # single points stand out
DENSE = dict(
    zip(
        DENSE_VARIANTS,
        ({"marker": "*", "markersize": 9}, {"marker": "X", "markersize": 7}),
        strict=True,
    )
)


def dense_marker(name: str) -> dict[str, Any]:
    """How one of the two dense models is drawn."""
    return {"color": style.INK, "linestyle": "", "zorder": 4} | OUTLINE | DENSE[name]


def dense_handles() -> list[Line2D]:
    """Their entries in a legend."""
    return [Line2D([], [], label=DENSE_VARIANTS[name], **dense_marker(name)) for name in DENSE]
