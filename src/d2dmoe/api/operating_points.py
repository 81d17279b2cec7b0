"""The operating points of a rule, from the cheapest to the dearest, one after the other.

A calibration walks along such a path. What its points cost is predicted from what the routers say
of a few thousand tokens, with every expert on; routing changes what later layers see, so the true
cost differs by a little and is measured where it matters. Nothing is known of a rule but whether
its values count experts: which way the cost rises with them is found here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from d2dmoe.lookup import resolve
from d2dmoe.selection import Selection
from d2dmoe.selection_rules import Rule

TOKENS = 4096  # of a layer and a batch that are looked at
COUNTS = 64  # at most as many values that count experts are looked at
DIGITS = 6  # of a value that is a share
PLACES = 512  # on the path of the multiplier: between them it is straight
FLAT = 1e-6  # of the steepest slope: less is none

_FINE = np.geomspace(1e-6, 1e-2, 17)
SHARES = np.unique(np.concatenate([[0, 1], _FINE, 1 - _FINE, np.linspace(0.01, 0.99, 50)]))
"""Shares that are looked at: denser at the ends, where rules that sum or compare scores change most
things."""

Values = dict[str, float]  # by layer


@dataclass(frozen=True)
class Curve:
    """Executed experts of a mean token at values of a rule, from the fewest on."""

    values: np.ndarray
    experts: np.ndarray  # does not fall
    whole: bool  # values count experts

    def value_at(self, experts: float) -> float:
        """The value that executes so many experts; if it counts them, the dearest within."""
        value = float(np.interp(experts, self.experts, self.values))
        if not self.whole:
            return float(f"{value:.{DIGITS}g}")
        rising = self.values[-1] >= self.values[0]
        return int(np.floor(value + 1e-9) if rising else np.ceil(value - 1e-9))

    def experts_at(self, value: float) -> float:
        """The inverse of `value_at`."""
        order = np.argsort(self.values)
        return float(np.interp(value, self.values[order], self.experts[order]))


@dataclass
class Watcher:
    """Sees the routers' scores in a pass with every expert on, and what a rule makes of them."""

    rule: Rule
    totals: dict[str, Tensor] = field(default_factory=dict)  # executed experts at each value
    tokens: dict[str, int] = field(default_factory=dict)

    def see(self, name: str, selection: Selection, scores: Tensor, real: Tensor | None) -> None:
        """As `measure.See`."""
        scores = scores.flatten(0, -2) if real is None else scores[real]
        scores = scores[:: max(1, -(-len(scores) // TOKENS))]
        select = resolve(self.rule.select)
        values = self.values_of(scores.shape[-1])
        own = (selection.sensitivity,) if self.rule.sensitive else ()
        counts = torch.stack([select(scores, value, *own).sum() for value in values]).double().cpu()
        self.totals[name] = self.totals.get(name, 0) + counts
        self.tokens[name] = self.tokens.get(name, 0) + len(scores)

    def values_of(self, num_experts: int) -> list[float]:
        """The values that are looked at in a layer."""
        if not self.rule.whole:
            return SHARES.tolist()
        counts = np.linspace(1, num_experts, min(COUNTS, num_experts)).round()
        return [int(k) for k in np.unique(counts)]

    def curve(self, name: str, num_experts: int) -> Curve:
        """The curve of a layer."""
        experts = (self.totals[name] / self.tokens[name]).numpy()
        return _curve(np.array(self.values_of(num_experts), float), experts, self.rule.whole)


def _curve(values: np.ndarray, experts: np.ndarray, whole: bool) -> Curve:
    """From the fewest experts on; rounding and ties leave no steps back."""
    if experts[0] > experts[-1]:
        values, experts = values[::-1], experts[::-1]
    return Curve(values, np.maximum.accumulate(experts), whole)


@dataclass(frozen=True)
class Path:
    """Operating points of all layers by one number, with which their cost rises."""

    low: float
    high: float
    step: float  # 1: positions are whole numbers
    at: Callable[[float], Values]
    cost: Callable[[float], float]  # predicted, a share of the dense cost


@dataclass(frozen=True)
class Layers:
    """What layers cost at a rule's values, as a share of the model's dense cost."""

    curves: dict[str, Curve]
    weights: dict[str, float]  # of one executed expert of all tokens
    rest: float  # all else, routers included

    def cost(self, values: Mapping[str, float]) -> float:
        """Of the model, predicted."""
        executed = ((n, curve.experts_at(values[n])) for n, curve in self.curves.items())
        return self.rest + sum(self.weights[name] * experts for name, experts in executed)

    def one_value(self, step: float) -> Path:
        """The path on which all layers have the same value.

        Positions are predicted costs, so that a step is as long everywhere; where values count
        experts, positions are their places in the order of cost, up to the experts of the smallest
        layer.
        """
        first = next(iter(self.curves.values()))
        if first.whole:
            return self._counted()
        values = first.values
        costs = np.array([self.cost(self._all(value)) for value in values])
        whole = Curve(values, np.maximum.accumulate(costs), whole=False)

        def at(x: float) -> Values:
            return self._all(whole.value_at(x))

        return Path(float(costs[0]), float(costs[-1]), step, at, cost=lambda x: x)

    def _counted(self) -> Path:
        smallest = min(self.curves.values(), key=lambda curve: curve.values.max())
        rising = smallest.values[-1] >= smallest.values[0]
        most = int(smallest.values.max())

        def at(x: float) -> Values:
            return self._all(int(x) if rising else most + 1 - int(x))

        return Path(1, most, 1, at, cost=lambda x: self.cost(at(x)))

    def _all(self, value: float) -> Values:
        return dict.fromkeys(self.curves, value)


def layer_path(
    layers: Layers, prices: Mapping[str, Sequence[tuple[float, float]]], step: float
) -> Path:
    """The path on which every layer gives as much loss for its last FLOP: one Lagrange multiplier.

    At a multiplier λ a layer's operating point makes loss + λ · cost least. So it is where the
    convex hull of its points has the slope −λ. Between the slopes of two segments the cost goes
    from the middle of one to that of the other, so that it changes without jumps.

    Args:
        layers: their curves and weights.
        prices: of each layer alone, the others with every expert on: executed experts of a mean
            token, and the loss that this adds.
        step: the cost between neighbours.

    Returns:
        Positions are predicted costs; −log λ rises with them.
    """
    hulls = {n: _hull_of(prices[n]) for n in layers.curves}
    slopes = {n: -np.diff(y) / (np.diff(x) * layers.weights[n]) for n, (x, y) in hulls.items()}
    least = FLAT * max((part.max(initial=0.0) for part in slopes.values()), default=0.0) or FLAT
    bends = {n: _bends(hulls[n][0], np.maximum(slopes[n], least)) for n in hulls}
    low = min(xs[0] for xs, _ in bends.values())
    high = max(xs[-1] for xs, _ in bends.values())

    def at_multiplier(x: float) -> Values:
        return {n: layers.curves[n].value_at(np.interp(x, *bends[n])) for n in bends}

    positions = np.linspace(low, high, PLACES)
    costs = np.array([layers.cost(at_multiplier(x)) for x in positions])
    costs = np.maximum.accumulate(costs)

    def at(cost: float) -> Values:
        return at_multiplier(float(np.interp(cost, costs, positions)))

    return Path(float(costs[0]), float(costs[-1]), step, at, cost=lambda x: x)


def _bends(experts: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A layer's −log λ, rising, and the executed experts there."""
    if not len(slopes):  # it has one operating point
        return np.zeros(1), experts
    positions = -np.log(slopes) + 0.01 * np.arange(len(slopes))  # apart where all are flat
    xs = np.concatenate([positions[:1] - 1, positions, positions[-1:] + 1])
    middles = (experts[:-1] + experts[1:]) / 2
    return xs, np.concatenate([experts[:1], middles, experts[-1:]])


def _hull_of(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Executed experts, rising, and losses at the corners of the lower convex hull."""
    experts, losses = np.array(sorted(points)).T
    losses = np.minimum.accumulate(losses)  # more experts lose no more: what does not fall is noise
    corners = _hull(experts, np.maximum(losses, 0.0))
    return experts[corners], np.maximum(losses, 0.0)[corners]


def _hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Places of the corners of the lower convex hull, x rising."""
    corners: list[int] = []
    for place in range(len(x)):
        if corners and x[place] - x[corners[-1]] <= 1e-12:
            continue
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[place] - x[a]) < (y[place] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(place)
    return corners
