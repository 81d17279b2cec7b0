"""What a model is trained and judged on: its own loss, the usual one of its kind, or anyone's.

A model of transformers that is given labels says its loss itself. Otherwise predictions are
compared with the batch's targets by cross-entropy, in nats; a causal language model without labels
predicts its own next tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from d2dmoe.api.batch import Batch
from d2dmoe.api.forwards import generates, unwrapped
from d2dmoe.api.padding import IGNORED
from d2dmoe.errors import UserError, full_memory

Loss = Callable[[Any, Batch], Tensor]  # (outputs, batch) -> scalar, or one value a sample
GIVE = "Give `loss=`, a function (outputs, batch) -> scalar or one value a sample."


class SampleLosses(NamedTuple):
    """The losses of a batch's samples; of the batch as one, where they cannot be told apart."""

    sums: Tensor  # float32 [n], over a sample's targets
    counts: Tensor  # float32 [n], the targets

    @property
    def mean(self) -> Tensor:
        """Over all targets, a scalar."""
        return self.sums.sum() / self.counts.sum()


class Predictions(NamedTuple):
    """What outputs say of classes, or of next tokens."""

    logits: Tensor  # [samples, ..., classes]
    targets: Tensor  # int64 [samples, ...] where IGNORED does not count, or probabilities as logits


def task_loss(model: nn.Module, outputs: Any, batch: Batch, loss: Loss | None = None) -> Tensor:
    """The loss of a batch, a scalar with gradients.

    Args:
        model: whose outputs they are.
        outputs: what `batch.outputs(model)` gave.
        batch: from `as_batches`.
        loss: None, or a function (outputs, batch) -> scalar or per-sample tensor.

    Raises:
        UserError: the model says no loss and there are no fitting targets, or `loss` gives no
            number.
    """
    if loss is not None:
        return _given(loss, outputs, batch).mean()
    own = _own_loss(outputs)
    return sample_losses(model, outputs, batch).mean if own is None else own


def sample_losses(
    model: nn.Module, outputs: Any, batch: Batch, loss: Loss | None = None
) -> SampleLosses:
    """The losses of a batch's samples, whose `mean` is `task_loss`.

    A model's own loss is split over the samples where cross-entropy repeats it.
    """
    if loss is not None:
        values = _given(loss, outputs, batch).float()
        if values.ndim:
            return SampleLosses(values, torch.ones_like(values))
        return _as_one(values, len(batch))
    own, found = _own_loss(outputs), predictions(model, outputs, batch)
    if own is None:
        if found is None:
            raise UserError(_nothing_to_compare(model, outputs, batch))
        _check_classes(found)
        return _cross_entropies(found)
    if found is not None and _stray(found) is None:
        split, rounding = _cross_entropies(found), 4 * torch.finfo(own.dtype).eps + 1e-5
        if torch.allclose(split.mean, own.float(), rounding, rounding):
            return split
    targets = batch.targets
    counted = isinstance(targets, Tensor) and not targets.is_floating_point()
    return _as_one(own.float(), int((targets != IGNORED).sum()) if counted else len(batch))


def predictions(model: nn.Module, outputs: Any, batch: Batch) -> Predictions | None:
    """Logits beside the targets that they predict; None where outputs or targets are of other
    kinds (numbers, boxes, none at all)."""
    logits, targets = logits_of(outputs), batch.targets
    if logits is None or logits.ndim < 2:
        return None
    if generates(model) and (targets is None or "labels" in batch.kwargs):
        return _next_tokens(logits, batch)
    if not isinstance(targets, Tensor):
        return None
    if not targets.is_floating_point() and targets.shape == logits.shape[:-1]:
        return Predictions(logits, targets.long())
    if targets.is_floating_point() and targets.shape == logits.shape and _are_shares(targets):
        return Predictions(logits, targets)
    return None


def logits_of(outputs: Any) -> Tensor | None:
    """The logits among a model's outputs, None where there are none."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    elif isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    return outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)


def _next_tokens(logits: Tensor, batch: Batch) -> Predictions | None:
    """Of a causal language model: logits at a token predict the one after it."""
    targets = batch.targets if batch.targets is not None else batch.kwargs.get("input_ids")
    if not isinstance(targets, Tensor) or targets.shape != logits.shape[:-1]:
        return None
    following, real = targets[:, 1:], batch.real_tokens.of("", targets.shape)
    if batch.targets is None and real is not None:
        between = real[:, 1:] & real[:, :-1]  # from a real token to a real one
        following = following.masked_fill(~between, IGNORED)
    return Predictions(logits[:, :-1], following.long())


def _cross_entropies(found: Predictions) -> SampleLosses:
    logits, targets = found.logits, found.targets
    samples, classes = len(logits), logits.shape[-1]
    logits = logits.reshape(-1, classes).float()
    if targets.is_floating_point():
        losses = cross_entropy(logits, targets.reshape(-1, classes).float(), reduction="none")
        counted = torch.ones_like(losses)
    else:
        targets = targets.flatten()
        losses = cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
        counted = (targets != IGNORED).float()
    return SampleLosses(losses.view(samples, -1).sum(1), counted.view(samples, -1).sum(1))


def _own_loss(outputs: Any) -> Tensor | None:
    """What the model says its loss is."""
    named = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return named.mean() if isinstance(named, Tensor) else None


def _as_one(loss: Tensor, count: int) -> SampleLosses:
    counts = torch.full((1,), float(count), device=loss.device)
    return SampleLosses(loss.reshape(1) * counts, counts)


def _given(function: Any, outputs: Any, batch: Batch) -> Tensor:
    """What a user's function makes of outputs."""
    if not callable(function):
        kind = type(function).__name__
        raise UserError(f"loss must be a function (outputs, batch), this is of type {kind}")
    try:
        loss = function(outputs, batch)
    except Exception as error:  # of any kind: it is the user's own
        if isinstance(error, UserError) or full_memory(error):
            raise
        raise UserError(
            f"loss(outputs, batch) fails ({type(error).__name__}: {error}); outputs are what the "
            "model gives, batch.targets and batch.kwargs what it was called with"
        ) from error
    if isinstance(loss, Tensor) and loss.is_floating_point() and loss.ndim <= 1 and loss.numel():
        return loss
    shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
    raise UserError(
        f"loss(outputs, batch) must give a floating scalar or one value a sample; it gave "
        f"{type(loss).__name__}{shape}"
    )


def _are_shares(targets: Tensor) -> bool:
    """Whether targets [..., classes] are probabilities, not numbers to be met."""
    ones = torch.ones((), device=targets.device)
    return bool((targets >= 0).all()) and torch.allclose(targets.float().sum(-1), ones, atol=1e-3)


def _stray(found: Predictions) -> int | None:
    """A target that is no class of the logits, or None."""
    targets, classes = found.targets, found.logits.shape[-1]
    if targets.is_floating_point():
        return None
    wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= classes))]
    return int(wrong[0]) if len(wrong) else None


def _check_classes(found: Predictions) -> None:
    if (target := _stray(found)) is not None:
        raise UserError(f"target {target} is none of the model's {found.logits.shape[-1]} classes")


def _nothing_to_compare(model: nn.Module, outputs: Any, batch: Batch) -> str:
    """Why there is no loss, and what to do."""
    name = type(unwrapped(model)).__name__
    logits = logits_of(outputs)
    if logits is None:
        return f"{name} gives neither a loss nor logits. {GIVE}"
    if batch.targets is None and name.endswith("ForMaskedLM"):
        return (
            f"{name} needs labels: mask tokens with transformers' DataCollatorForLanguageModeling. "
            "Or give `loss=`."
        )
    if batch.targets is None:
        return f"{name} needs targets: give labels in the dicts, or pairs (inputs, targets)."
    shape = tuple(getattr(batch.targets, "shape", ()))
    return f"targets of shape {shape} are no classes for logits of {tuple(logits.shape)}. {GIVE}"
