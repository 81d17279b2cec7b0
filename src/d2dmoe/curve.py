"""Quality over cost, from a method's operating points.

More experts do not make a model worse, but for noise. So the qualities are replaced by the nearest
ones that do not fall as the cost rises (isotonic regression), and joined by a monotone cubic
(PCHIP), which does not overshoot.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression


@dataclass(frozen=True)
class Curve:
    """Operating points, joined."""

    costs: np.ndarray  # rising, [points]
    qualities: np.ndarray  # not falling, [points]

    @cached_property
    def _cubic(self) -> PchipInterpolator:
        return PchipInterpolator(self.costs, self.qualities)

    def quality(self, costs: np.ndarray) -> np.ndarray:
        """At these costs; outside of the operating points that of the nearest one."""
        inside = np.clip(costs, self.costs[0], self.costs[-1])
        if len(self.costs) == 1:
            return np.full_like(inside, self.qualities[0])
        return self._cubic(inside)


def curve_of(costs: np.ndarray, qualities: np.ndarray) -> Curve:
    """The curve through operating points in any order, [points] each; those of equal cost count as
    one."""
    distinct, owner, counts = np.unique(costs, return_inverse=True, return_counts=True)
    means = np.bincount(owner, qualities) / counts
    return Curve(distinct, isotonic_regression(means, weights=counts).x)
