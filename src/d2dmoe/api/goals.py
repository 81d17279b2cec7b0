"""The operating point that meets a budget of FLOPs or a tolerated loss, on a path of such points.

A rule has one value for all layers, or one a layer, chosen by one Lagrange multiplier
(`operating_points.layer_path`). Either way the points lie on a path from the cheapest to the
dearest, and what counts is measured on it: the cost of the routed model with all layers together,
or its loss.
"""

from collections.abc import Mapping
from typing import Any

from d2dmoe.api.operating_points import Curve, Path, Values, layer_path
from d2dmoe.api.search import Point, crossing
from d2dmoe.api.trials import Trials
from d2dmoe.errors import UserError

PASSES = 12  # at most, of one search
CLOSE = 0.0005  # of the dense cost: a budget is met
STEP = 0.001  # of the dense cost: the cheapest point within a tolerance is found so far
SHARES_OF_LAYERS = (0.5, 0.25, 0.1, 0.03, 0.0)
"""Of what a layer's experts cost beyond its cheapest point: where its loss is measured alone."""


class OutOfReach(UserError):
    """No operating point of the rule comes to what was asked for."""


def path_of(trials: Trials, per_layer: bool) -> Path:
    """The points of one value for all layers, or of a value a layer."""
    return _path_of_layers(trials) if per_layer else trials.layers.one_value(STEP / 2)


def _path_of_layers(trials: Trials) -> Path:
    """The path of a value a layer, of losses that are measured for each layer alone."""
    curves, everything = trials.layers.curves, dict.fromkeys(trials.moes, None)
    tried = [(name, value) for name, curve in curves.items() for value in _tried(curve)]
    trials.measure_all(everything | {name: value} for name, value in tried)
    prices = {name: [(float(curve.experts[-1]), 0.0)] for name, curve in curves.items()}
    for name, value in tried:
        alone = trials.increase(everything | {name: value})
        increase = alone - trials.increase_of(trials.everything)
        prices[name].append((curves[name].experts_at(value), increase))
    return layer_path(trials.layers, prices, STEP / 2)


def _tried(curve: Curve) -> list[float]:
    """The values at which a layer's loss is measured alone."""
    least, most = curve.experts[0], curve.experts[-1]
    wanted = (least + share * (most - least) for share in SHARES_OF_LAYERS)
    return list(dict.fromkeys(map(curve.value_at, wanted)))


def chosen(
    trials: Trials, path: Path, asked: Mapping[str, float]
) -> tuple[Values, dict[str, float]]:
    """The operating point, and half the last step: of the cost, and of the loss's increase. Asked
    for is a `flops_ratio` or a `max_loss_increase`."""
    if "flops_ratio" in asked:
        return _within_budget(trials, path, asked["flops_ratio"])
    return _within_tolerance(trials, path, asked["max_loss_increase"])


def _within_budget(trials: Trials, path: Path, budget: float) -> tuple[Values, dict[str, float]]:
    costs = path.cost(path.low), path.cost(path.high)
    if not costs[0] - STEP <= budget <= costs[1] + STEP:
        raise _unreachable(trials, budget, costs)

    def f(x: float) -> float:
        return trials.cost(path.at(x)) - budget

    whole = trials.rule.whole
    ends = Point(path.low, costs[0] - budget), Point(path.high, costs[1] - budget)
    ends = _ends_checked(f, ends)
    low, high = crossing(f, *ends, path.step, 0 if whole else CLOSE, PASSES)
    if whole:
        chosen = high if high.y <= 0 else low
    else:
        chosen = min(low, high, key=lambda point: abs(point.y))
    y = f(chosen.x)
    if whole and y > 0 or not whole and y > 10 * CLOSE and chosen.x == path.low:
        raise _unreachable(trials, budget, (budget + y, costs[1]))
    return path.at(chosen.x), {"flops_ratio": 0.0 if whole else min(abs(y), STEP) / 2}


def _ends_checked(f: Any, ends: tuple[Point, Point]) -> tuple[Point, Point]:
    """Predicted ends that do not enclose what is asked for are measured."""
    low, high = ends
    if low.y > 0:
        low = Point(low.x, min(f(low.x), 0.0))
    if high.y < 0:
        high = Point(high.x, max(f(high.x), 0.0))
    return low, high


def _within_tolerance(
    trials: Trials, path: Path, tolerance: float
) -> tuple[Values, dict[str, float]]:
    def f(x: float) -> float:
        return tolerance - trials.increase(path.at(x))

    low, high = Point(path.low, f(path.low)), Point(path.high, f(path.high))
    if low.y >= 0:
        return path.at(low.x), {}
    if high.y < 0:
        raise OutOfReach(
            f"max_loss_increase = {tolerance:g} cannot be kept: by {trials.rule.name} the loss is "
            f"at least {tolerance - high.y:+.3g} of that which it is relative to; at the cheapest "
            f"point it is {tolerance - low.y:+.3g}"
        )
    low, high = crossing(f, low, high, path.step, passes=PASSES - 2, chords=False)
    values = path.at(high.x)
    if trials.rule.whole:  # its values are exact
        return values, {}
    cost = (trials.cost(values) - trials.cost(path.at(low.x))) / 2
    return values, {"flops_ratio": abs(cost), "loss_increase": abs(high.y - low.y) / 2}


def _unreachable(trials: Trials, budget: float, costs: tuple[float, float]) -> OutOfReach:
    return OutOfReach(
        f"flops_ratio = {budget:g} cannot be met: by {trials.rule.name} the model costs from "
        f"{costs[0]:.3f} to {costs[1]:.3f} of the dense one, of which {trials.layers.rest:.3f} are "
        "routers and what lies outside of the experts"
    )
