"""One pass over batches: what each sample loses, and how many experts its tokens execute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2dmoe.api.batch import Batch
from d2dmoe.api.batches import Batches
from d2dmoe.api.padding import IGNORED
from d2dmoe.api.task_loss import Loss, predictions, sample_losses
from d2dmoe.errors import DataError, UserError
from d2dmoe.moe import MoE
from d2dmoe.selection import Selection
from d2dmoe.surgery import find, in_mode, watch

See = Callable[[str, Selection, Tensor, Tensor | None], None]
"""(layer, selection, scores [..., n], real tokens [...] or None) at every call of a layer."""


@dataclass(frozen=True)
class Scores:
    """How well samples are predicted. A unit is a sample, or a batch of which there is one loss."""

    losses: Tensor  # float64 [units], sums over their targets
    targets: Tensor  # float64 [units]
    unit: Tensor  # int64 [samples], the unit of each
    correct: Tensor | None  # float64 [units]; None where targets are no classes
    tokens: bool  # targets are tokens

    def by_unit(self, values: Tensor) -> Tensor:
        """Sums of values [samples] over the samples of each unit: [units]."""
        return torch.zeros_like(self.losses).index_add_(0, self.unit, values.double())


@dataclass(frozen=True)
class Measured:
    """What one pass came to."""

    samples: int
    executed: dict[str, Tensor]  # float64 [samples], by layer that has a router
    scores: Scores | None  # None where nothing says what is right, or it was not asked for


def measure(
    model: nn.Module,
    batches: Batches,
    loss: Loss | None = None,
    scored: bool = True,
    see: See | None = None,
    each: Callable[[Batch], None] | None = None,
) -> Measured:
    """Run the model on all batches, in evaluation mode and without gradients.

    Args:
        model: at the operating point that is measured.
        batches: from `as_batches`.
        loss: as for `task_loss`.
        scored: whether losses are asked for. Batches without targets have none, unless the model
            makes its own.
        see: called with what each layer selects from.
        each: called with every batch.

    Raises:
        UserError: batches, targets or `loss` are not as they should be.
    """
    executed = _Executed(model, see)
    found: list[_Scored] = []
    unlabelled = False
    with in_mode(model, training=False), torch.no_grad(), executed.watching():
        for batch in batches:
            executed.begin(batch)
            outputs = batch.outputs(model)
            if scored and not unlabelled:
                unlabelled = _unlabelled(model, outputs, batch, loss)
                found += [] if unlabelled else [_scored(model, outputs, batch, loss)]
            if each is not None:
                each(batch)
    samples, by_layer = executed.result()
    scores = _joined(found) if found and not unlabelled else None
    if scores is not None and not scores.targets.any():
        raise DataError(
            "there is nothing to predict: all labels are -100, or all texts have one token"
        )
    return Measured(samples, by_layer, scores)


class _Executed:
    """Counts the experts that each sample's real tokens execute, by layer."""

    def __init__(self, model: nn.Module, see: See | None):
        routed = {name: moe for name, moe in find(model, MoE).items() if moe.router is not None}
        self._selections = {name: moe.selection for name, moe in routed.items()}
        self._names = {id(selection): name for name, selection in self._selections.items()}
        self._see = see
        self._batches: list[int] = []  # samples of each
        self._counts: dict[str, list[Tensor]] = {name: [] for name in routed}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with watch(self._selections, self._count):
            yield

    def begin(self, batch: Batch) -> None:
        """What follows is of this batch."""
        self._batch = batch
        self._batches.append(len(batch))
        for counts in self._counts.values():
            counts.append(torch.zeros(len(batch), dtype=torch.float64, device="cpu"))

    def _count(self, selection: Selection, scores: Tensor, mask: Tensor) -> None:
        name = self._names[id(selection)]
        real = self._batch.real_tokens.of(name, mask.shape[:-1])
        per_token = mask.sum(-1)
        if real is not None:
            per_token = per_token * real
        counts = self._counts[name]  # of a layer that is called again, as shared ones are, the sum
        counts[-1] = counts[-1] + _by_sample(per_token, len(self._batch)).cpu()
        if self._see is not None:
            self._see(name, selection, scores, real)

    def result(self) -> tuple[int, dict[str, Tensor]]:
        """Number of samples, and by layer float64 [samples]."""
        return sum(self._batches), {name: torch.cat(c) for name, c in self._counts.items()}


def _by_sample(values: Tensor, samples: int) -> Tensor:
    """Sums of a layer's values over each sample's tokens: float64 [samples].

    Args:
        values: [samples, ...], [tokens, samples], or flattened with a sample's tokens together, as
            layers that work on windows of images have them. In any other layout the samples get
            equal shares.
    """
    if len(values) != samples and values.ndim == 2 and values.shape[1] == samples:
        values = values.T
    if values.numel() % samples:
        return values.sum().double().expand(samples) / samples
    return values.reshape(samples, -1).sum(1).double()


@dataclass(frozen=True)
class _Scored:
    """The scores of one batch."""

    losses: Tensor  # [units]
    targets: Tensor
    correct: Tensor | None
    tokens: bool
    samples: int


def _unlabelled(model: nn.Module, outputs: object, batch: Batch, loss: Loss | None) -> bool:
    """Whether nothing says what is right. Where targets are wrong, an error says so later."""
    if loss is not None or batch.targets is not None:
        return False
    try:
        sample_losses(model, outputs, batch)
    except UserError:
        return True
    return False


def _scored(model: nn.Module, outputs: object, batch: Batch, loss: Loss | None) -> _Scored:
    found = sample_losses(model, outputs, batch, loss)
    one = loss is None or getattr(batch.targets, "ndim", 0) == 1  # else only `loss` knows
    predicted = predictions(model, outputs, batch) if one else None
    correct, tokens = None, False
    if predicted is not None and not predicted.targets.is_floating_point():
        hits = (predicted.logits.argmax(-1) == predicted.targets) & (predicted.targets != IGNORED)
        correct = hits.reshape(len(hits), -1).sum(1)
        correct = correct if len(found.sums) == len(correct) else correct.sum().reshape(1)
        tokens = predicted.targets.ndim > 1
    values = (found.sums, found.counts, correct)
    sums, counts, correct = (None if x is None else x.detach().double().cpu() for x in values)
    assert sums is not None and counts is not None
    return _Scored(sums, counts, correct, tokens, len(batch))


def _joined(found: list[_Scored]) -> Scores:
    units, start = [], 0
    for scored in found:
        of_batch = torch.arange(len(scored.losses), device="cpu").expand(scored.samples) + start
        units.append(of_batch)
        start += len(scored.losses)
    correct = [scored.correct for scored in found if scored.correct is not None]
    return Scores(
        torch.cat([scored.losses for scored in found]),
        torch.cat([scored.targets for scored in found]),
        torch.cat(units),
        torch.cat(correct) if len(correct) == len(found) else None,
        all(scored.tokens for scored in found),
    )
