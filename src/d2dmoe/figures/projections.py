"""Figure 3: how the linear maps of an attention become experts (paper section 3.5; claim C6).

A drawing, not a measurement. Left the attention with its four maps, right the same with what
replaces them, and between them what happens to each map.
"""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Polygon, Rectangle

from d2dmoe.figures import style

HEIGHT = 3.75  # inches; all coordinates are inches from the lower left corner
MAP, MLP, ROUTER = style.COLOURS[0], style.COLOURS[2], style.COLOURS[1]
SKIPPED = "#e4e4e4"
BLOCKS = {"left": 1.05, "right": 6.05}  # centres
MAPS = {"Q": (-0.7, 0.85), "K": (0.0, 0.85), "V": (0.7, 0.85), "O": (0.0, 2.55)}  # from a centre
SIDE = 0.58  # of what stands for a map
# Experts that a token executes, of the six of each map: another number for each.
EXECUTED = {"Q": (1, 4), "K": (3,), "V": (0, 2, 3, 5), "O": (0, 1, 4)}
ROWS = (2.98, 1.95, 0.82)  # the steps of a map, from above
STEPS = (2.55, 4.55)  # ends of these rows
MIDDLE = sum(STEPS) / 2

Place = tuple[float, float]


@style.styled
def draw() -> Figure:
    """The schematic, two columns wide."""
    figure = Figure(figsize=(style.WIDE, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, style.WIDE), ylim=(0, HEIGHT), aspect="equal")
    axes.set_axis_off()
    _attention(axes, BLOCKS["left"], "attention", _linear)
    _attention(axes, BLOCKS["right"], "converted attention", _experts)
    _text(axes, (MIDDLE, HEIGHT - 0.2), "each of its four maps", size=8.5)
    for x in (1.95, 4.85):  # from title to title
        _arrow(axes, (x, HEIGHT - 0.2), (x + 0.35, HEIGHT - 0.2), style.FAINT)
    _linear_step(axes, ROWS[0])
    _next_step(axes, (ROWS[0] - 0.31, ROWS[1] + 0.4), "imitates the map: least\nMSE on its inputs")
    _mlp_step(axes, ROWS[1])
    _next_step(axes, (ROWS[1] - 0.4, ROWS[2] + 0.42), "made sparse, split;\nrouter trained")
    _experts_step(axes, ROWS[2])
    _key(axes, 0.16)
    return figure


def _attention(
    axes: Axes, centre: float, title: str, draw_map: Callable[[Axes, Place, str], None]
) -> None:
    """An attention, from its input below to its output above, with its maps as `draw_map` does."""
    places = {name: (centre + x, y) for name, (x, y) in MAPS.items()}
    _text(axes, (centre, HEIGHT - 0.2), title, size=8.5)
    _text(axes, (centre, 0.1), "input z")
    fork = 0.38  # height where the input is shared out
    axes.plot([centre, centre], [0.2, fork], color=style.INK, linewidth=0.8)
    axes.plot([places[n][0] for n in "QV"], [fork, fork], color=style.INK, linewidth=0.8)
    for name in "QKV":
        x, y = places[name]
        _arrow(axes, (x, fork), (x, y - SIDE / 2))
        _arrow(axes, (x, y + SIDE / 2), (x, 1.5))
    _box(axes, (centre, 1.7), 1.92, 0.4, "#f4f4f4", style.FAINT)
    _text(axes, (centre, 1.7), "scaled dot-product attention")
    x, y = places["O"]
    _arrow(axes, (x, 1.9), (x, y - SIDE / 2))
    _arrow(axes, (x, y + SIDE / 2), (x, 3.12))
    _text(axes, (centre, 3.22), "output")
    for name, place in places.items():
        draw_map(axes, place, name)


def _linear(axes: Axes, place: Place, name: str) -> None:
    _box(axes, place, SIDE, SIDE, (MAP, 0.25), MAP)
    _text(axes, place, name, size=9)


def _experts(axes: Axes, place: Place, name: str) -> None:
    """A converted map: its name and router on the left, its experts on the right."""
    x, y = place
    _box(axes, place, SIDE, SIDE, "white", MLP)
    _text(axes, (x - 0.155, y + 0.13), name, size=9)
    _router(axes, (x - 0.155, y - 0.13))
    _slices(axes, (x + 0.11, y), 0.25, SIDE - 0.1, EXECUTED[name])


def _router(axes: Axes, place: Place) -> None:
    _box(axes, place, 0.17, 0.17, (ROUTER, 0.35), ROUTER)
    _text(axes, (place[0], place[1] - 0.005), "R", size=6)


def _expert(axes: Axes, place: Place, width: float, height: float, executed: bool) -> None:
    colours = ((MLP, 0.6), MLP) if executed else (SKIPPED, "#b0b0b0")
    _box(axes, place, width, height, *colours)


def _slices(axes: Axes, place: Place, width: float, height: float, executed: Sequence[int]) -> None:
    """Six experts, one above the other; those executed are coloured."""
    x, y = place
    step = height / 6
    for index in range(6):
        low = y + height / 2 - (index + 0.5) * step
        _expert(axes, (x, low), width, 0.72 * step, index in executed)


def _next_step(axes: Axes, heights: tuple[float, float], text: str) -> None:
    """An arrow down from one step to the next, with what is done."""
    x = MIDDLE - 0.45
    _arrow(axes, (x, heights[0]), (x, heights[1]), style.FAINT)
    _text(axes, (x + 0.1, sum(heights) / 2), text, "left")


def _linear_step(axes: Axes, y: float) -> None:
    start, end = STEPS
    _text(axes, (start, y), "z")
    _arrow(axes, (start + 0.08, y), (MIDDLE - 0.5, y))
    _box(axes, (MIDDLE, y), 1.0, 0.5, (MAP, 0.25), MAP)
    _text(axes, (MIDDLE, y), "Linear\nd → d")
    _arrow(axes, (MIDDLE + 0.5, y), (end - 0.1, y))
    _text(axes, (end - 0.08, y), "W z", "left")


def _mlp_step(axes: Axes, y: float) -> None:
    """Two layers with a narrow waist, as wide as their tokens."""
    start, end = STEPS
    wide, narrow, gap = 0.36, 0.18, 0.14  # half heights of d and h; half the ReLU's width
    _text(axes, (start, y), "z")
    _arrow(axes, (start + 0.08, y), (MIDDLE - 0.72, y))
    for sign in (-1, 1):
        outer, inner = MIDDLE + 0.72 * sign, MIDDLE + gap * sign
        corners = [(outer, y - wide), (outer, y + wide), (inner, y + narrow), (inner, y - narrow)]
        axes.add_patch(Polygon(corners, facecolor=(MLP, 0.25), edgecolor=MLP, linewidth=0.8))
        _text(axes, (MIDDLE + 0.44 * sign, y), "d → h" if sign < 0 else "h → d")
    _box(axes, (MIDDLE, y), 2 * gap, 2 * narrow, "white", MLP)
    _text(axes, (MIDDLE, y), "ReLU", size=6)
    _arrow(axes, (MIDDLE + 0.72, y), (end - 0.1, y))
    _text(axes, (end - 0.08, y), "≈ W z", "left")
    _text(axes, (end - 0.22, y - 0.34), "h ≈ d / 2:\nsimilar cost", "left", size=6.5)


def _experts_step(axes: Axes, y: float) -> None:
    """A token's router chooses among the experts, whose outputs are added."""
    start, end = STEPS
    fork, router = start + 0.18, (start + 0.45, y - 0.24)
    _text(axes, (start, y), "z")
    axes.plot([fork, fork], [y, router[1]], color=style.INK, linewidth=0.8)
    _arrow(axes, (fork, router[1]), (router[0] - 0.085, router[1]))
    _router(axes, router)
    _arrow(axes, (router[0] + 0.085, router[1]), (MIDDLE - 0.4, router[1]), ROUTER)
    _arrow(axes, (start + 0.08, y), (MIDDLE - 0.4, y))
    _slices(axes, (MIDDLE + 0.02, y), 0.84, 0.76, EXECUTED["V"])
    _arrow(axes, (MIDDLE + 0.44, y), (end - 0.39, y))
    axes.add_patch(Circle((end - 0.3, y), 0.09, facecolor="white", edgecolor=MLP, linewidth=0.8))
    _text(axes, (end - 0.3, y - 0.005), "+")
    _arrow(axes, (end - 0.21, y), (end - 0.04, y))


def _key(axes: Axes, y: float) -> None:
    """What the signs of converted maps mean."""
    _router(axes, (2.62, y))
    _text(axes, (2.74, y), "router", "left")
    for x, text in ((3.14, "expert executed"), (4.3, "skipped")):
        _expert(axes, (x + 0.08, y), 0.16, 0.08, text != "skipped")
        _text(axes, (x + 0.2, y), text, "left")


def _box(axes: Axes, centre: Place, width: float, height: float, face, edge) -> None:
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    look = {"facecolor": face, "edgecolor": edge, "linewidth": 0.8}
    axes.add_patch(Rectangle(corner, width, height, **look))


def _arrow(axes: Axes, start: Place, end: Place, color: str = style.INK) -> None:
    look: dict[str, Any] = {"color": color, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=6, **look))


def _text(axes: Axes, place: Place, text: str, align: str = "center", size: float = 7) -> None:
    axes.text(*place, text, ha=align, va="center", fontsize=size, linespacing=1.1)
