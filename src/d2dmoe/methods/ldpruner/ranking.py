"""How far the final representation moves without an operator, and which leave (LD-Pruner).

The final representation is what the head reads: of a sample that is classified one vector, of a
text a vector for each token. The score of an operator, an attention, an FFN or a block of both, is
‖mean − mean'‖₂ + ‖std − std'‖₂, where the means and standard deviations of each dimension over all
vectors are those with it and, primed, without it. No label is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from d2dmoe.inputs import Inputs
from d2dmoe.jobs.progress import Progress
from d2dmoe.methods.ldpruner.removal import ATTENTION, FFN
from d2dmoe.models.build import count_blocks, head_of, leave_out
from d2dmoe.surgery import put, watch

KINDS = ((ATTENTION,), (FFN,), (ATTENTION, FFN))  # the last is the whole block


class Operator(NamedTuple):
    """What can be removed."""

    block: int
    sublayers: tuple[str, ...]  # one of `KINDS`

    @property
    def parts(self) -> set[tuple[int, str]]:
        """Its attention and FFN: block and sublayer."""
        return {(self.block, sublayer) for sublayer in self.sublayers}


class Spread(NamedTuple):
    """How vectors lie."""

    mean: Tensor  # of each dimension, float64 [d_model]
    std: Tensor  # likewise

    def shift(self, other: "Spread") -> float:
        """How far others lie from them."""
        return float((self.mean - other.mean).norm() + (self.std - other.std).norm())


def shifts(
    architecture: str, model: nn.Module, inputs: Sequence[Inputs], log_every_s: float
) -> dict[Operator, float]:
    """The score of every operator, each removed alone.

    Args:
        architecture: of the model.
        model: in evaluation mode; it is as before afterwards.
        inputs: of some samples.
        log_every_s: seconds between progress lines.

    Raises:
        CheckpointError: sublayers of the architecture's blocks cannot be left out.
    """
    blocks = range(count_blocks(architecture, model))
    operators = [Operator(block, kind) for block in blocks for kind in KINDS]
    whole = _spread(architecture, model, inputs)
    progress = Progress("ranking operators", len(operators), every_s=log_every_s)
    scores = {}
    for index, operator in enumerate(operators):
        with _without(architecture, model, operator):
            scores[operator] = whole.shift(_spread(architecture, model, inputs))
        progress.update(index + 1)
    return scores


@contextmanager
def _without(architecture: str, model: nn.Module, operator: Operator) -> Iterator[None]:
    before: dict[str, nn.Module] = {}
    for block, sublayer in operator.parts:
        before |= leave_out(architecture, model, block, sublayer)
    try:
        yield
    finally:
        for name, module in before.items():
            put(model, name, module)


@torch.inference_mode()
def _spread(architecture: str, model: nn.Module, inputs: Sequence[Inputs]) -> Spread:
    """Of the final representations of samples."""
    moments = []
    head = {"head": head_of(architecture, model)}
    with watch(head, lambda _module, z, _output: z) as seen:
        for batch in inputs:
            model(**batch)
            z = seen["head"].flatten(0, -2).double()  # [vectors, d_model]
            moments.append((len(z), z.sum(0), z.square().sum(0)))
    count, sums, squares = (sum(parts) for parts in zip(*moments, strict=True))
    mean = sums / count
    return Spread(mean, (squares / count - mean**2).clamp(min=0).sqrt())


def least(scores: Mapping[Operator, float], count: int) -> set[tuple[int, str]]:
    """The attentions and FFNs that leave, block and sublayer of each: those of the operators with
    the smallest scores, a block's being two, until there are `count`.

    What would be more is passed over, and so is the last FFN, by which a sample's tokens are told.
    """
    gone: set[tuple[int, str]] = set()
    ffns = sum(operator.sublayers == (FFN,) for operator in scores)
    for operator in sorted(scores, key=scores.__getitem__):
        larger = gone | operator.parts
        if len(larger) <= count and sum(sublayer == FFN for _, sublayer in larger) < ffns:
            gone = larger
    return gone
