"""The operating point for a budget of FLOPs or for a tolerated loss; the paper tries a list of τ.

A rule has one value for all layers, or one a layer, chosen by one Lagrange multiplier
(`operating_points.layer_path`). Either way the points lie on a path from the cheapest to the
dearest, and what counts is measured on it: the cost of the routed model with all layers together,
or its loss. In the end the interval is said in which both will lie on other samples.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from d2dmoe.api.batches import Batch, Batches, as_batches
from d2dmoe.api.costs import Costs, SampleCosts
from d2dmoe.api.evaluate import between, number
from d2dmoe.api.intervals import Interval, ratio, ratio_interval
from d2dmoe.api.measure import Measured, Scores, measure
from d2dmoe.api.operating_points import Layers, Path, Values, Watcher, layer_path
from d2dmoe.api.search import Point, crossing
from d2dmoe.api.task_loss import Loss
from d2dmoe.errors import DataError, UserError
from d2dmoe.lookup import look_up
from d2dmoe.moe import MoE
from d2dmoe.selection_rules import RULES, Rule
from d2dmoe.surgery import find

PASSES = 12  # at most, of one search
CLOSE = 0.0005  # of the dense cost: a budget is met
STEP = 0.001  # of the dense cost: the cheapest point within a tolerance is found so far
LEAST, FEW = 8, 50  # samples: fewer are refused; fewer make a warning
ALL = ("dynamic_k", 0.0)  # the operating point at which every expert runs
SHARES_OF_LAYERS = (0.5, 0.25, 0.1, 0.03, 0.0)
"""Of what a layer's experts cost beyond its cheapest point: where its loss is measured alone."""


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


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    flops_ratio: float | None = None,
    max_loss_increase: float | None = None,
    per_layer: bool = False,
    rule: str = "dynamic_k",
    loss: Loss | None = None,
    dense_loss: float | None = None,
) -> Calibration:
    """Choose the operating point of a converted model on validation samples, and set it.

    Args:
        model: with routers.
        batches: as for `as_batches`, in the same order at every pass; not those trained on.
        flops_ratio: the budget, a share of the dense model's FLOPs. It is met to 0.05 %; by a rule
            that counts experts it is not exceeded.
        max_loss_increase: instead: the cheapest point whose loss is at most this share above that
            with every expert on, 0.01 for 1 %.
        per_layer: a value for each layer instead of one for all. Takes a pass for each of five
            points of every layer, beside the up to 15 that one value takes.
        rule: a key of `selection_rules.RULES`.
        loss: as for `evaluate`.
        dense_loss: the loss that increases are relative to, instead of that with every expert on.

    Raises:
        UserError: nothing or too much is asked for, the rule cannot come to it (the message says
            what it can), or the model has no routers.
        UnknownName: there is no such rule.
        DataError: batches are not as they should be, too few, or of another order in each pass.
    """
    asked = _asked(flops_ratio, max_loss_increase)
    record = look_up(RULES, rule, "selection rule")
    moes = _routed(model)
    before = {name: moe.operating_point for name, moe in moes.items()}
    set_points(moes, dict.fromkeys(moes, ALL))
    passes = 5 * len(moes) * per_layer + PASSES + 3
    with tqdm(total=passes, desc="calibrating", unit="pass", disable=None, leave=False) as bar:
        try:
            trials = _Trials(model, moes, record, as_batches(batches, model, again=True), loss, bar)
            trials.needs_loss = per_layer or max_loss_increase is not None
            trials.begin(dense_loss)
            path = trials.layer_path() if per_layer else trials.layers.one_value(STEP / 2)
            values, half = _chosen(trials, path, flops_ratio, max_loss_increase)
            found = trials.at(values, scored=trials.reference is not None)
        except BaseException:
            set_points(moes, before)
            raise
    trials.set(values)
    return _calibration(trials, asked, per_layer, values, half, found)


def set_points(moes: Mapping[str, MoE], points: Mapping[str, tuple[str, float]]) -> None:
    """Give layers their rules and values."""
    for name, point in points.items():
        moes[name].operating_point = point


class _Trials:
    """Operating points of one model on the same batches; each is measured once."""

    def __init__(
        self,
        model: nn.Module,
        moes: dict[str, MoE],
        rule: Rule,
        batches: Batches,
        loss: Loss | None,
        bar: Any,
    ):
        self.model, self.moes, self.rule = model, moes, rule
        self.passes, self.needs_loss = 0, False
        self._batches, self._loss, self._bar = batches, loss, bar
        self._known: dict[tuple, Measured] = {}
        self._order: list[tuple] = []  # what tells the batches of the first pass apart

    def begin(self, dense_loss: float | None) -> None:
        """The pass with every expert on: costs, the loss that others are relative to, and curves.

        Raises:
            UserError: there are too few samples, or losses are not numbers.
        """
        costs, watcher = SampleCosts(self.model), Watcher(self.rule)
        self.everything = self._pass(True, see=watcher.see, each=costs.add)
        self.costs: Costs = costs.count()
        self.reference = self.everything.scores
        self._given = dense_loss
        _check_samples(self.everything, self.needs_loss)
        _check_loss(self.reference, dense_loss)
        curves = {n: watcher.curve(n, moe.num_experts) for n, moe in self.moes.items()}
        self.layers = self._layers(curves)

    def _layers(self, curves: dict[str, Any]) -> Layers:
        dense = float(self.costs.dense.sum())
        layers, tokens = self.costs.layers, self.costs.tokens
        weights = {n: float(tokens[n].sum()) * layers[n].expert / dense for n in curves}
        nothing = dict.fromkeys(curves, torch.zeros_like(self.costs.fixed))
        rest = float(self.costs.total(nothing).sum()) / dense
        return Layers(curves, weights, rest)

    def at(self, values: Mapping[str, float | None], scored: bool) -> Measured:
        """What values come to, by layer; None: every expert runs."""
        key = tuple(values[name] for name in self.moes)
        known = self._known.get(key)
        if known is None or scored and known.scores is None:
            self.set(values)
            known = self._known[key] = self._pass(scored)
        return known

    def set(self, values: Mapping[str, float | None]) -> None:
        """Let the model run at these values."""
        rule = self.rule.name
        points = {n: ALL if value is None else (rule, value) for n, value in values.items()}
        set_points(self.moes, points)

    def cost(self, values: Values) -> float:
        """Measured, a share of the dense cost."""
        return self.cost_of(self.at(values, scored=False))

    def cost_of(self, found: Measured) -> float:
        return ratio(self.costs.total(found.executed), self.costs.dense)

    def increase(self, values: Mapping[str, float | None]) -> float:
        """Of the loss, relative; measured."""
        return self.increase_of(self.at(values, scored=True))

    def increase_of(self, found: Measured) -> float:
        return ratio(*self.losses(found)) - 1

    def losses(self, found: Measured) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of units, and what they are relative to."""
        assert found.scores is not None and self.reference is not None
        losses = found.scores.losses
        if not torch.isfinite(losses).all():
            losses = torch.nan_to_num(losses, nan=math.inf)
        if self._given is None:
            return losses, self.reference.losses
        return losses, self.reference.targets * self._given

    def layer_path(self) -> Path:
        """The path of a value a layer, of losses that are measured for each layer alone."""
        prices = {}
        for name, curve in self.layers.curves.items():
            least, most = curve.experts[0], curve.experts[-1]
            prices[name] = [(float(most), 0.0)]
            wanted = (least + share * (most - least) for share in SHARES_OF_LAYERS)
            for value in dict.fromkeys(map(curve.value_at, wanted)):
                alone = dict.fromkeys(self.moes, None) | {name: value}
                increase = self.increase(alone) - self.increase_of(self.everything)
                prices[name].append((curve.experts_at(value), increase))
        return layer_path(self.layers, prices, STEP / 2)

    def _pass(self, scored: bool, see: Any = None, each: Any = None) -> Measured:
        seen: list[tuple] = []

        def note(batch: Batch) -> None:
            seen.append(_mark(batch))
            if each is not None:
                each(batch)

        found = measure(self.model, self._batches, self._loss, scored, see, note)
        self.passes += 1
        self._bar.update()
        self._order = self._order or seen
        if seen != self._order:
            raise DataError(
                "batches differ from pass to pass, so that operating points cannot be compared: "
                "give a DataLoader without shuffle and without random changes of the samples"
            )
        return found


def _mark(batch: Batch) -> tuple:
    """What tells a batch from others."""
    inputs = batch.inputs
    assert inputs is not None  # `as_batches` sees to it
    flat = inputs.detach().flatten(1) if inputs.ndim > 1 else inputs.detach()[:, None]
    return tuple(inputs.shape), float(flat.double().sum()), float(flat[0].double().sum())


def _chosen(
    trials: _Trials, path: Path, budget: float | None, tolerance: float | None
) -> tuple[Values, dict[str, float]]:
    """The operating point, and half the last step: of the cost, and of the loss's increase."""
    if budget is not None:
        return _within_budget(trials, path, budget)
    assert tolerance is not None
    return _within_tolerance(trials, path, tolerance)


def _within_budget(trials: _Trials, path: Path, budget: float) -> tuple[Values, dict[str, float]]:
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
    trials: _Trials, path: Path, tolerance: float
) -> tuple[Values, dict[str, float]]:
    def f(x: float) -> float:
        return tolerance - trials.increase(path.at(x))

    low, high = Point(path.low, f(path.low)), Point(path.high, f(path.high))
    if low.y >= 0:
        return path.at(low.x), {}
    if high.y < 0:
        raise UserError(
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


def _unreachable(trials: _Trials, budget: float, costs: tuple[float, float]) -> UserError:
    return UserError(
        f"flops_ratio = {budget:g} cannot be met: by {trials.rule.name} the model costs from "
        f"{costs[0]:.3f} to {costs[1]:.3f} of the dense one, of which {trials.layers.rest:.3f} are "
        "routers and what lies outside of the experts"
    )


def _asked(budget: float | None, tolerance: float | None) -> dict[str, float]:
    given = {"flops_ratio": budget, "max_loss_increase": tolerance}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise UserError("give either flops_ratio or max_loss_increase")
    ((name, value),) = asked.items()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{name} = {value!r} must be a number, not below 0")
    return asked


def _routed(model: nn.Module) -> dict[str, MoE]:
    """The layers with experts, all of which have routers."""
    moes = find(model, MoE)
    if not moes:
        raise UserError(f"{type(model).__name__} has no experts to choose from: convert it first")
    if missing := [name for name, moe in moes.items() if moe.router is None]:
        raise UserError(f"{', '.join(missing)}: no router yet; train the routers first")
    return moes


def _check_samples(found: Measured, needs_loss: bool) -> None:
    if needs_loss and found.scores is None:
        raise DataError("batches have no targets, and losses are asked for: give labels, or `loss`")
    units = len(found.scores.losses) if needs_loss and found.scores else found.samples
    what = "samples" if units == found.samples else "batches that have one loss each"
    if units < LEAST:
        raise DataError(
            f"{units} {what} are too few to say anything of others: give {LEAST} at least, better "
            "hundreds"
        )
    if units < FEW:
        warnings.warn(f"a calibration on {units} {what} is rough: give hundreds", stacklevel=4)


def _check_loss(scores: Scores | None, dense_loss: float | None) -> None:
    if scores is None:
        return
    mean = ratio(scores.losses, scores.targets)
    base = mean if dense_loss is None else dense_loss
    if not math.isfinite(mean) or not 0 < base < math.inf:
        raise UserError(
            f"the loss with every expert on is {mean:g}"
            + ("" if dense_loss is None else f" and dense_loss = {dense_loss:g}")
            + ": increases are relative to a number above 0"
        )


def _calibration(
    trials: _Trials,
    asked: dict[str, float],
    per_layer: bool,
    values: Values,
    half: dict[str, float],
    found: Measured,
) -> Calibration:
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
    path = trials.layers.one_value(STEP / 2)
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


def _layer(trials: _Trials, name: str, value: float, found: Measured) -> dict[str, Any]:
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
