"""Operating points of one model, measured on the same batches at every pass."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.batch import Batch
from d2dmoe.api.batches import Batches
from d2dmoe.api.costs import Costs, SampleCosts
from d2dmoe.api.intervals import ratio
from d2dmoe.api.measure import Measured, Scores, measure
from d2dmoe.api.operating_points import Layers, Values, Watcher
from d2dmoe.api.task_loss import Loss
from d2dmoe.errors import DataError, UserError
from d2dmoe.moe import MoE
from d2dmoe.processes import spread
from d2dmoe.selection_rules import Rule

LEAST, FEW = 8, 50  # samples: fewer are refused; fewer make a warning
ALL = ("dynamic_k", 0.0)  # the operating point at which every expert runs


def set_points(moes: Mapping[str, MoE], points: Mapping[str, tuple[str, float]]) -> None:
    """Give layers their rules and values."""
    for name, point in points.items():
        moes[name].operating_point = point


class Trials:
    """Operating points of one model on the same batches; each is measured once, its loss too where
    there is one. Several searches share them."""

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
        self.needs_loss = False
        self.used: set[tuple] = set()  # points that a search, or its path, has asked for
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

    @property
    def passes(self) -> int:
        """Over the batches, of the points in `used` and of that with every expert on."""
        return 1 + len(self.used)

    def at(self, values: Mapping[str, float | None]) -> Measured:
        """What values come to, by layer; None: every expert runs."""
        key = self._key(values)
        self.used.add(key)
        if key not in self._known:
            self.set(values)
            self._known[key] = self._pass(self.reference is not None)
        return self._known[key]

    def measure_all(self, points: Iterable[Mapping[str, float | None]]) -> None:
        """Measure points, each by one of the processes that share the job."""
        missing = [values for values in points if self._key(values) not in self._known]
        for values, found in zip(missing, spread(missing, self.at), strict=True):
            self._known[self._key(values)] = found

    def _key(self, values: Mapping[str, float | None]) -> tuple:
        return tuple(values[name] for name in self.moes)

    def set(self, values: Mapping[str, float | None]) -> None:
        """Let the model run at these values."""
        rule = self.rule.name
        points = {n: ALL if value is None else (rule, value) for n, value in values.items()}
        set_points(self.moes, points)

    def cost(self, values: Values) -> float:
        """Measured, a share of the dense cost."""
        return self.cost_of(self.at(values))

    def cost_of(self, found: Measured) -> float:
        """FLOPs of a measurement, a share of the dense cost."""
        return ratio(self.costs.total(found.executed), self.costs.dense)

    def increase(self, values: Mapping[str, float | None]) -> float:
        """Of the loss, relative; measured."""
        return self.increase_of(self.at(values))

    def increase_of(self, found: Measured) -> float:
        """How much larger than with every expert on the loss is, as a share of it."""
        return ratio(*self.losses(found)) - 1

    def losses(self, found: Measured) -> tuple[Tensor, Tensor]:
        """The losses of units, and what they are relative to."""
        assert found.scores is not None and self.reference is not None
        losses = found.scores.losses
        if not torch.isfinite(losses).all():
            losses = torch.nan_to_num(losses, nan=math.inf)
        if self._given is None:
            return losses, self.reference.losses
        return losses, self.reference.targets * self._given

    def _pass(self, scored: bool, see: Any = None, each: Any = None) -> Measured:
        seen: list[tuple] = []

        def note(batch: Batch) -> None:
            seen.append(_mark(batch))
            if each is not None:
                each(batch)

        found = measure(self.model, self._batches, self._loss, scored, see, note)
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
        warnings.warn(f"a calibration on {units} {what} is rough: give hundreds", stacklevel=5)


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
