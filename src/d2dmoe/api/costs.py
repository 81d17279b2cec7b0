"""What each sample costs, by the convention of `flops`: without padding, as if it came alone.

Samples of one shape cost the same but for the experts that they execute, so one of each shape is
counted. FLOPs are a polynomial of the second degree in the lengths of a sample (attention is
quadratic, all else linear or constant): where there are many shapes, some are counted and the
polynomial gives the rest. It is checked at further ones, and where it does not hold, as with
attention in blocks, every shape is counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from d2dmoe.api.batch import TARGETS, Batch
from d2dmoe.api.forwards import Forward
from d2dmoe.flops import LayerCost, model_cost
from d2dmoe.padding import DECODER, MASKS, WHOLE

CHECKS = 4  # shapes at which the polynomial is checked
EXACT = 1e-9  # of a count: rounding of the polynomial
OF_DECODERS = ("decoder", "tgt")  # begin the names of arguments that a decoder reads


class Sample(NamedTuple):
    """What a forward of one sample is called with, its padding cut off."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all tensors."""
        values = (*self.args, *(self.kwargs[name] for name in sorted(self.kwargs)))
        return tuple(tuple(x.shape) for x in values if isinstance(x, Tensor))


@dataclass(frozen=True)
class Costs:
    """The cost of samples, but for the experts that they execute."""

    fixed: Tensor  # float64 [samples], FLOPs outside of FFNs
    tokens: dict[str, Tensor]  # float64 [samples], by layer: tokens that it sees
    layers: dict[str, LayerCost]  # by name; `tokens` are those of one of the samples

    @property
    def dense(self) -> Tensor:
        """FLOPs of the dense model, [samples]."""
        return self.total({n: self.all_experts(n) for n in self.layers}, routers=False)

    def all_experts(self, name: str) -> Tensor:
        """Experts that the samples execute in a layer without a router, [samples]."""
        return self.tokens[name] * self.layers[name].num_experts

    def total(self, executed: dict[str, Tensor], routers: bool = True) -> Tensor:
        """FLOPs, [samples], given the experts that each sample's tokens run in the layers; layers
        that are left out run all."""
        total = self.fixed.clone()
        for name, layer in self.layers.items():
            total += executed.get(name, self.all_experts(name)) * layer.expert
            if routers:
                total += self.tokens[name] * layer.router
        return total


class SampleCosts:
    """Takes batches, and counts what their samples cost."""

    def __init__(self, model: nn.Module):
        self._model, self._form = model, Forward.of(model)
        self._examples: dict[tuple, Sample] = {}  # by shape
        self._shapes: list[tuple] = []  # of every sample

    def add(self, batch: Batch) -> None:
        """Note the shapes of a batch's samples."""
        masks = batch.real_tokens.masks.values()
        lengths = list(zip(*(mask.sum(1).tolist() for mask in masks), strict=True))
        lengths = lengths or [()] * len(batch)
        shapes: dict[tuple, tuple] = {}
        for index, length in enumerate(lengths):
            if length not in shapes:
                sample = _sample(batch, index, self._form)
                shapes[length] = sample.shape
                self._examples.setdefault(sample.shape, sample)
        self._shapes += [shapes[length] for length in lengths]

    def count(self) -> Costs:
        """The costs of all samples, in their order."""
        examples = list(self._examples.values())
        first = self._count(examples[0])
        names = list(first.layers)
        by_shape = _numbers(examples, lambda sample: _vector(self._count(sample), names))
        places = {shape: place for place, shape in enumerate(self._examples)}
        numbers = by_shape[[places[shape] for shape in self._shapes]]  # [samples, 1 + layers]
        tokens = dict(zip(names, numbers.T[1:], strict=True))
        return Costs(numbers[:, 0], tokens, first.layers)

    def _count(self, sample: Sample) -> Any:
        return model_cost(self._model, sample.kwargs, sample.args)


def _vector(cost: Any, names: Iterable[str]) -> Tensor:
    """What depends on a sample's shape: [1 + layers]."""
    values = [cost.fixed, *(cost.layers[name].tokens for name in names)]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _sample(batch: Batch, index: int, form: Forward) -> Sample:
    """One of a batch's samples, [1, ...], without padding."""
    masks = batch.real_tokens.masks
    kept = {part: _real(mask[index]) for part, mask in masks.items()}

    def cut(name: str, value: Any) -> Any:
        """This sample's share of an argument: [batch, tokens, ...] to [1, real tokens, ...]."""
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if len(value) == len(batch):
            value = value[index : index + 1]
        part = _part(name) if _part(name) in masks else WHOLE
        if part in masks and value.ndim > 1 and value.shape[1] == masks[part].shape[1]:
            value = value[:, kept[part]]
        return value

    named = form.bound(batch.args, {})
    names = [*named, *[""] * (len(batch.args) - len(named))]
    args = tuple(cut(name, x) for name, x in zip(names, batch.args, strict=True))
    return Sample(args, {name: cut(name, x) for name, x in batch.kwargs.items()})


def _part(name: str) -> str:
    """Whose tokens an argument has: the decoder's, where there is one, or the model's."""
    if name in MASKS:
        return MASKS[name][0]
    return DECODER if name.startswith(OF_DECODERS) or name in TARGETS else WHOLE


def _real(mask: Tensor) -> Tensor:
    """The places of real tokens; of a sample that has none, its first."""
    real = mask.nonzero().flatten()
    return real if len(real) else real.new_zeros(1)


# The polynomial in the lengths.


def _numbers(samples: list[Sample], count: Any) -> Tensor:
    """`count(sample)` of each sample, float64 [samples, numbers]; few determine all others."""
    design = _design(samples)
    if design is None or len(samples) <= design.shape[1] + CHECKS:
        return torch.stack([count(sample) for sample in samples])
    picked = _independent(design)
    others = [i for i in range(len(samples)) if i not in picked]
    others.sort(key=lambda i: float(design[i].sum()))
    checks = others[:: max(1, (len(others) - 1) // (CHECKS - 1))]
    counted = {i: count(samples[i]) for i in (*picked, *checks)}
    known = torch.stack([counted[i] for i in picked])
    found = design @ torch.linalg.lstsq(design[picked], known, driver="gelsd").solution
    found = found.round()
    right = torch.stack([counted[i] for i in checks])
    if not torch.allclose(found[checks], right, rtol=EXACT, atol=0.5):
        rest = {i: count(samples[i]) for i in range(len(samples)) if i not in counted}
        counted |= rest
        return torch.stack([counted[i] for i in range(len(samples))])
    return found


def _design(samples: list[Sample]) -> Tensor | None:
    """The polynomial's terms at each sample's lengths, [samples, terms]; None where samples differ
    in more than two lengths."""
    flat = [
        [float(n) for shape in sample.shape for n in (len(shape), *shape)] for sample in samples
    ]
    if len({len(sizes) for sizes in flat}) > 1:
        return None
    columns = {column for column in zip(*flat, strict=True) if len({*column}) > 1}
    if not 0 < len(columns) <= 2:
        return None
    axes = [torch.tensor(x, dtype=torch.float64, device="cpu") / max(x) for x in sorted(columns)]
    products = [axes[i] * axes[j] for i in range(len(axes)) for j in range(i, len(axes))]
    return torch.stack([torch.ones_like(axes[0]), *axes, *products], dim=1)


def _independent(design: Tensor) -> list[int]:
    """Rows that determine all others, as far apart as can be: Gram–Schmidt with pivoting."""
    left, picked = design.clone(), []
    for _ in range(design.shape[1]):
        norms = left.norm(dim=1)
        row = int(norms.argmax())
        if norms[row] < 1e-8:
            break
        picked.append(row)
        unit = left[row] / norms[row]
        left = left - (left @ unit)[:, None] * unit
    return picked
