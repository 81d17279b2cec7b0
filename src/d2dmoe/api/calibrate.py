"""The operating point for a budget of FLOPs or a tolerated loss, where the paper tries a list of τ.

`trials` measures, `goals` searches, `calibration` says what to expect of other samples.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import nn
from tqdm import tqdm

from d2dmoe.api.batches import as_batches
from d2dmoe.api.calibration import Calibration, expected
from d2dmoe.api.goals import PASSES, SHARES_OF_LAYERS, OutOfReach, chosen, path_of
from d2dmoe.api.task_loss import Loss
from d2dmoe.api.trials import ALL, Trials, set_points
from d2dmoe.errors import UserError
from d2dmoe.lookup import look_up
from d2dmoe.moe import MoE
from d2dmoe.processes import spread
from d2dmoe.selection_rules import RULES
from d2dmoe.surgery import find


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
    asked = {"flops_ratio": flops_ratio, "max_loss_increase": max_loss_increase}
    how: dict[str, Any] = {"per_layer": per_layer, "rule": rule, "loss": loss}
    (found,) = calibrate_each(model, batches, [asked], **how, dense_loss=dense_loss)
    if isinstance(found, OutOfReach):
        raise found
    set_points(_routed(model), {name: (rule, value) for name, value in found.values.items()})
    return found


def calibrate_each(
    model: nn.Module,
    batches: Iterable[Any],
    goals: Sequence[Mapping[str, float | None]],
    *,
    per_layer: bool = False,
    rule: str = "dynamic_k",
    loss: Loss | None = None,
    dense_loss: float | None = None,
) -> list[Calibration | OutOfReach]:
    """What `calibrate` finds for each of several goals, or why it cannot be met. They share the
    passes that none of them alone decides; the processes that share the job part the others.

    Args:
        goals: `flops_ratio` or `max_loss_increase` of each.
        model, batches, per_layer, rule, loss, dense_loss: as for `calibrate`. The model is left as
            it was.

    Raises:
        UserError, UnknownName, DataError: as `calibrate`, but for goals out of reach.
    """
    every = [_asked(goal) for goal in goals]
    if dense_loss is not None:
        _check_number("dense_loss", dense_loss)
    if not isinstance(per_layer, bool):
        raise UserError(f"per_layer = {per_layer!r} must be True or False")
    record = look_up(RULES, rule, "selection rule")
    moes = _routed(model)
    before = {name: moe.operating_point for name, moe in moes.items()}
    set_points(moes, dict.fromkeys(moes, ALL))
    passes = len(SHARES_OF_LAYERS) * len(moes) * per_layer + (PASSES + 2) * len(every) + 1
    with tqdm(total=passes, desc="calibrating", unit="pass", disable=None, leave=False) as bar:
        try:
            trials = Trials(model, moes, record, as_batches(batches, model, again=True), loss, bar)
            trials.needs_loss = per_layer or any("max_loss_increase" in goal for goal in every)
            trials.begin(dense_loss)
            path = path_of(trials, per_layer)
            shared = frozenset(trials.used)

            def search(asked: dict[str, float]) -> Calibration | OutOfReach:
                trials.used = set(shared)
                try:
                    values, half = chosen(trials, path, asked)
                except OutOfReach as error:
                    return error
                return expected(trials, asked, per_layer, values, half, trials.at(values))

            return spread(every, search)
        finally:
            set_points(moes, before)


def _asked(goal: Mapping[str, float | None]) -> dict[str, float]:
    asked = {name: value for name, value in goal.items() if value is not None}
    if len(asked) != 1:
        raise UserError("give either flops_ratio or max_loss_increase")
    ((name, value),) = asked.items()
    _check_number(name, value)
    return asked


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise UserError(f"{name} = {value!r} must be a number, not below 0")


def _routed(model: nn.Module) -> dict[str, MoE]:
    """The layers with experts, all of which have routers."""
    moes = find(model, MoE)
    if not moes:
        raise UserError(f"{type(model).__name__} has no experts to choose from: convert it first")
    if missing := [name for name, moe in moes.items() if moe.router is None]:
        raise UserError(f"{', '.join(missing)}: no router yet; train the routers first")
    return moes
