"""Where a quantity that rises with the cost of a model crosses what is asked for."""

from collections.abc import Callable
from typing import NamedTuple

TRUSTED = 5  # steps along chords; then halves, which end surely
INSIDE = 0.02  # of the range: a step goes at least so far into it, so that both ends move


class Point(NamedTuple):
    """A position and what was found there, less what is asked for."""

    x: float
    y: float


def crossing(
    f: Callable[[float], float],
    low: Point,
    high: Point,
    step: float,
    close: float = 0.0,
    passes: int = 12,
    chords: bool = True,
) -> tuple[Point, Point]:
    """Neighbours around the place where f crosses 0 from below.

    Args:
        f: rises, if not in every detail; it is called at positions between the ends.
        low, high: the ends, y < 0 at the low and y >= 0 at the high one, measured or guessed.
        step: positions that are as near as that are neighbours; 1: positions are whole numbers.
        close: a position whose |y| is no more ends the search.
        passes: most calls of f.
        chords: go where the line between the ends crosses 0, which is soon there if f is nearly
            straight; else halve.

    Returns:
        The last ends, low and high; twice the same point where it is close enough.
    """
    for turn in range(passes):
        width = high.x - low.x
        if width <= step:
            break
        part = low.y / (low.y - high.y) if chords and turn < TRUSTED else 0.5
        x = low.x + width * min(max(part, INSIDE), 1 - INSIDE)
        if step == 1:
            x = min(max(round(x), low.x + 1), high.x - 1)
        point = Point(x, f(x))
        if abs(point.y) <= close:
            return point, point
        low, high = (point, high) if point.y < 0 else (low, point)
    return low, high
