"""What a calibration came to, and what to expect of it on other samples."""

import math
from dataclasses import dataclass, field
from typing import Any

from d2dmoe.api.evaluate import between, number
from d2dmoe.api.goals import path_of
from d2dmoe.api.intervals import Interval, ratio, ratio_interval
from d2dmoe.api.measure import Measured
from d2dmoe.api.operating_points import Values
from d2dmoe.api.trials import Trials
from d2dmoe.selection_rules import RULES


@dataclass(frozen=True)
class Calibration:
    """An operating point, what it came to, and what to expect of it. Printed, it is a table.

    Intervals are those in which the means of as many other samples of the same kind lie, with
    95 % confidence: by bootstrap, and half the last step of the search on either side.
    """

    rule: str
    values: Values  # by layer
    per_layer: bool
    asked: dict[str, float]  # flops_ratio or max_loss_increase
    samples: int
    passes: int  # over the batches
    flops_ratio: float  # measured: share of the dense model's FLOPs
    reachable: Interval  # shares that the rule can come to, about
    loss: float | None  # None where batches have no targets
    loss_increase: float | None  # relative to that with every expert on, or to `dense_loss`
    intervals: dict[str, Interval]  # of flops_ratio and loss_increase
    layers: list[dict[str, Any]] = field(default_factory=list)  # name, value, share of experts

    @property
    def value(self) -> float | None:
        """The value of all layers; None where they differ."""
        values = {*self.values.values()}
        return values.pop() if len(values) == 1 else None

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        plain = {"reachable": list(self.reachable), "intervals": intervals, "value": self.value}
        return vars(self) | plain


def expected(
    trials: Trials,
    asked: dict[str, float],
    per_layer: bool,
    values: Values,
    half: dict[str, float],
    found: Measured,
) -> Calibration:
    """The record of an operating point that was found; `half` is half the search's last step."""
    sums = {"flops_ratio": (trials.costs.total(found.executed), trials.costs.dense)}
    scores = found.scores
    if scores is not None:
        sums["loss_increase"] = trials.losses(found)
    intervals = {}
    for name, pair in sums.items():
        interval = ratio_interval(*pair, again=True)
        if interval is not None:
            shift, margin = float(name == "loss_increase"), half.get(name, 0.0)
            intervals[name] = interval[0] - shift - margin, interval[1] - shift + margin
    path = path_of(trials, per_layer=False)
    return Calibration(
        rule=trials.rule.name,
        values=values,
        per_layer=per_layer,
        asked=asked,
        samples=found.samples,
        passes=trials.passes,
        flops_ratio=trials.cost_of(found),
        reachable=(path.cost(path.low), path.cost(path.high)),
        loss=None if scores is None else ratio(scores.losses, scores.targets),
        loss_increase=None if scores is None else trials.increase_of(found),
        intervals=intervals,
        layers=[_layer(trials, name, values[name], found) for name in values],
    )


def _layer(trials: Trials, name: str, value: float, found: Measured) -> dict[str, Any]:
    share = ratio(found.executed[name], trials.costs.all_experts(name))
    return {"name": name, "role": trials.moes[name].role, "value": value, "share": share}


def _lines(found: Calibration) -> list[str]:
    symbol = RULES[found.rule].symbol
    point = f"{symbol} = {found.value:g}" if found.value is not None else f"a {symbol} a layer"
    lines = [
        f"{found.rule}, {point}, from {found.samples:,} samples in {found.passes} passes; in "
        "brackets what as many others will give (95 %)"
    ]
    cost = f"  share of the dense FLOPs  {found.flops_ratio:.4f}"
    lines.append(cost + between(found.intervals.get("flops_ratio")) + _off(found, "flops_ratio"))
    if found.loss is not None and found.loss_increase is not None:
        low, high = found.intervals.get("loss_increase", (math.nan, math.nan))
        lines.append(f"  loss                      {number(found.loss)}")
        lines.append(
            f"  its increase              {found.loss_increase:+.2%}  [{low:+.2%}, {high:+.2%}]"
            + _off(found, "max_loss_increase")
        )
    low, high = found.reachable
    lines.append(f"  the rule can come to      {low:.3f} to {high:.3f} of the dense FLOPs")
    width = max(len(row["name"]) for row in found.layers)
    return lines + [
        f"  {r['name']:<{width}}  {r['role']:<4}  {symbol} = {r['value']:<8g}  {r['share']:.1%} of "
        "the experts"
        for r in found.layers
    ]


def _off(found: Calibration, name: str) -> str:
    """What was asked for, and how far it is off."""
    if name not in found.asked:
        return ""
    if name == "max_loss_increase":
        return f"  asked: at most {found.asked[name]:+.2%}"
    return f"  asked: {found.asked[name]:g}, off by {found.flops_ratio - found.asked[name]:+.4f}"
