"""Quality over cost, from a method's operating points.

More experts do not make a model worse, but for noise. So the qualities are replaced by the nearest
ones that do not fall as the cost rises (isotonic regression), and joined by a monotone cubic
(PCHIP), which does not overshoot.

scipy's PCHIP is of one set of costs, and a bootstrap has a thousand, each of a dozen points: the
one here is of all of them at once, ten times as fast.
"""

import numpy as np
from scipy.optimize import isotonic_regression


def quality_at(costs: np.ndarray, points: np.ndarray, qualities: np.ndarray) -> np.ndarray:
    """The quality of each curve at costs; outside of its points that of the nearest one.

    Args:
        costs: [n], or of each curve its own [curves, n].
        points: the costs of the operating points, in any order: [curves, points]. Those of equal
            cost count as one.
        qualities: of these points, alike.

    Returns:
        [curves, n].
    """
    order = np.argsort(points, axis=1, kind="stable")
    points, qualities = (np.take_along_axis(x, order, axis=1) for x in (points, qualities))
    costs = np.broadcast_to(costs, (len(points), np.shape(costs)[-1]))
    found = np.empty(costs.shape)
    begins = np.diff(points, axis=1, prepend=-np.inf) > 0  # of equal costs the first
    for pattern in np.unique(begins, axis=0):
        rows = (begins == pattern).all(axis=1)
        first, counts = np.flatnonzero(pattern), np.diff([*np.flatnonzero(pattern), len(pattern)])
        means = np.add.reduceat(qualities[rows], first, axis=1) / counts
        found[rows] = _cubic(costs[rows], points[rows][:, first], not_falling(means, counts))
    return found


def not_falling(qualities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest qualities that do not fall: [curves, points]; weights are [points]."""
    rising = qualities.copy()
    for row in np.flatnonzero((np.diff(qualities, axis=1) < 0).any(axis=1)):
        rising[row] = isotonic_regression(qualities[row], weights=weights).x
    return rising


def _cubic(costs: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values at costs [curves, n] of the monotone cubics through points [curves, points], whose x
    rise (Fritsch and Butland, 1984)."""
    if x.shape[1] == 1:
        return np.broadcast_to(y, costs.shape)
    costs = np.clip(costs, x[:, :1], x[:, -1:])
    slopes = _slopes(x, y)
    piece = (x[:, None, 1:-1] <= costs[:, :, None]).sum(axis=2)  # [curves, n]

    def of(values: np.ndarray, later: int = 0) -> np.ndarray:
        return np.take_along_axis(values, piece + later, axis=1)

    width = of(x, 1) - of(x)
    t = (costs - of(x)) / width
    near, far = (1 + 2 * t) * (1 - t) ** 2, t**2 * (3 - 2 * t)
    bent = of(slopes) * t * (1 - t) ** 2 - of(slopes, 1) * t**2 * (1 - t)
    return near * of(y) + far * of(y, 1) + width * bent


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The derivative at each point, for values that do not fall: [curves, points]."""
    width = np.diff(x, axis=1)
    rise = np.diff(y, axis=1) / width
    if x.shape[1] == 2:
        return np.repeat(rise, 2, axis=1)
    before, after, left, right = width[:, :-1], width[:, 1:], rise[:, :-1], rise[:, 1:]
    with np.errstate(divide="ignore"):  # beside a level piece it is 0
        both = (2 * after + before) / left + (after + 2 * before) / right
        inner = 3 * (before + after) / both
    ends = (_end(width[:, [0, 1]], rise[:, [0, 1]]), _end(width[:, [-1, -2]], rise[:, [-1, -2]]))
    return np.stack([ends[0], *inner.T, ends[1]], axis=1)


def _end(width: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """The derivative at an end, of the two pieces there, [curves, 2], the outer first: that of the
    parabola through three points, as far as the cubic does not fall."""
    sloped = ((2 * width[:, 0] + width[:, 1]) * rise[:, 0] - width[:, 0] * rise[:, 1]) / width.sum(
        1
    )
    return np.clip(sloped, 0, np.where(rise[:, 1] > 0, np.inf, 3 * rise[:, 0]))
