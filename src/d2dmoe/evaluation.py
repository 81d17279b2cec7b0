"""Quality and cost of a model on a split, at every operating point of a selection rule.

A routed model may run by the kernels, which `moe` loads by name: so they are imported here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from d2dmoe.data.splits import Split
from d2dmoe.flops import ModelCost, at_lengths, mean_cost, model_cost
from d2dmoe.inputs import Inputs
from d2dmoe.jobs.progress import Progress
from d2dmoe.kernels import ops  # noqa: F401
from d2dmoe.moe import MoE, set_selection
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.processes import told
from d2dmoe.quality import Outcomes, batches_of, count_parameters, outcomes
from d2dmoe.selection import Selection
from d2dmoe.surgery import find, watch


class MeasureOptions(TypedDict):
    """How a saved model's operating points are measured."""

    split: str  # whose samples all count
    batch_size: int
    values: list[float]  # of the knob; empty where there is one operating point
    chosen: NotRequired[Any]  # what the evaluation's `choose` found, for all splits alike


class Measured(NamedTuple):
    """The operating points of a model, measured."""

    points: list[dict]
    """Rows knob, knob_value, flops per sample, params, tokens per sample, and the metrics of
    `quality.Outcomes`."""
    layers: list[dict] | None
    """Rows knob, knob_value, role (ffn or the attention projection q, k, v, o), layer (the block's
    index), num_experts, experts (the mean that a token executes), std (the standard deviation over
    tokens); None of models without experts."""
    samples: dict[str, Tensor]
    """What became of each sample at each point; see `per_sample`."""


def per_sample(points: list[tuple[Outcomes, Tensor]]) -> dict[str, Tensor]:
    """The outcomes of all samples in little space.

    Args:
        points: outcomes and FLOPs, [samples], of each operating point.

    Returns:
        correct: integers [points, samples]; loss: float32 [points, samples], nats; these are sums
        over a sample's targets, of which there are `targets`, int32 [samples]. flops: float32
        [points, samples].
    """
    found, flops = zip(*points, strict=True)
    targets = found[0].targets
    small = torch.uint8 if targets.max() < 2**8 else torch.int32
    return {
        "correct": torch.stack([x.correct for x in found]).to(small),
        "loss": torch.stack([x.loss for x in found]).float(),
        "flops": torch.stack(list(flops)).float(),
        "targets": targets.int(),
    }


def evaluate_dense(
    model: nn.Module, split: Split, batch_size: int, device: torch.device
) -> Measured:
    """The one operating point of a model without routers."""
    cost = cost_on(model, split, device)
    row = {
        "knob": "none",
        "knob_value": "",
        "flops": float(cost.dense),
        "params": count_parameters(model),
    }
    found, _ = outcomes(model, split, batch_size, device)
    flops = sample_flops(model, split, device, lambda cost: cost.dense)
    points = [row | {"tokens": cost.tokens} | found.metrics()]
    return Measured(points, None, per_sample([(found, flops)]))


def evaluate_routed(
    model: nn.Module,
    split: Split,
    rule: str,
    values: list[float],
    batch_size: int,
    device: torch.device,
    log_every_s: float = 10.0,
) -> Measured:
    """Every operating point of a rule.

    Args:
        model: converted, with routers, in evaluation mode.
        split: every sample counts.
        rule: a name of `selection_rules.RULES`.
        values: the rule's operating points (τ, k or p).
        batch_size: samples per step.
        device: where the model lies.
        log_every_s: seconds between progress lines.

    Raises:
        ValueError: the model has no routers.
    """

    def set_value(value: float) -> None:
        set_selection(model, rule, value)

    return evaluate_points(model, split, rule, values, set_value, batch_size, device, log_every_s)


def evaluate_points(
    model: nn.Module,
    split: Split,
    knob: str,
    values: list[float],
    set_value: Callable[[float], object],
    batch_size: int,
    device: torch.device,
    log_every_s: float = 10.0,
) -> Measured:
    """Every operating point of a knob: as `evaluate_routed`, but `set_value` gives the model the
    operating point of a value."""
    moes = find(model, MoE)
    if not moes or any(moe.router is None for moe in moes.values()):
        raise ValueError("the model has no routers; evaluate_dense measures dense models")
    places = _places(moes)
    cost, params = cost_on(model, split, device), count_parameters(model)
    idle = sample_flops(model, split, device, lambda cost: cost.total(dict.fromkeys(moes, 0.0)))
    progress = Progress(f"evaluating {knob}", len(values), every_s=log_every_s)
    points, layers, samples = [], [], []
    for index, value in enumerate(values):
        set_value(value)
        with count_executed(model) as executed:
            found, experts = by_sample(model, split, executed, batch_size, device)
        point = {"knob": knob, "knob_value": value}
        means = {name: e.total / len(split) for name, e in executed.items()}
        counted = {"flops": cost.total(means), "params": params, "tokens": cost.tokens}
        points.append(point | counted | found.metrics())
        layers += [point | place | executed[name].row() for name, place in places.items()]
        prices = torch.tensor([[cost.layers[name].expert] for name in executed])
        samples.append((found, idle + (experts * prices).sum(0)))
        progress.update(index + 1)
    return Measured(points, layers, per_sample(samples))


def by_sample(
    model: nn.Module,
    split: Split,
    executed: dict[str, "Executed"],
    batch_size: int,
    device: torch.device,
) -> tuple[Outcomes, Tensor]:
    """The outcomes of all samples, and the experts that each runs, int64 [layers, samples]; then
    `executed` counts them all."""

    def experts(samples: Tensor) -> Tensor:
        lengths = None if split.lengths is None else split.lengths[samples]
        counts = executed.values()
        return torch.stack([count.by_sample(len(samples), lengths) for count in counts])

    found, parts = outcomes(model, split, batch_size, device, experts)
    every = told([count.sums for count in executed.values()])  # of each process
    for count, sums in zip(executed.values(), zip(*every, strict=True), strict=True):
        count.sums = tuple(map(sum, zip(*sums, strict=True)))
    return found, torch.cat(parts, 1)


def _places(moes: dict[str, MoE]) -> dict[str, dict]:
    """Each layer's role, index among those of its role, and number of experts."""
    seen: dict[str, int] = {}
    places = {}
    for name, moe in moes.items():
        index = seen[moe.role] = seen.get(moe.role, -1) + 1
        places[name] = {"role": moe.role, "layer": index, "num_experts": moe.num_experts}
    return places


class Executed:
    """Running count of the experts that tokens execute in one layer; padding does not count."""

    def __init__(self):
        self.sums: tuple[int, ...] = (0, 0, 0)  # tokens, their experts, the squares of these
        self.latest = torch.empty(0, dtype=torch.int64)  # of each token of the last call

    def add(self, mask: Tensor) -> None:
        """Count a mask, boolean [tokens, num_experts]."""
        per_token = self.latest = mask.sum(-1)
        new = len(mask), int(per_token.sum()), int(per_token.square().sum())
        self.sums = tuple(old + more for old, more in zip(self.sums, new, strict=True))

    @property
    def tokens(self) -> int:
        """How many were counted."""
        return self.sums[0]

    @property
    def total(self) -> int:
        """Experts that all tokens execute together."""
        return self.sums[1]

    def by_sample(self, count: int, lengths: Tensor | None) -> Tensor:
        """The last call's, of each of its samples, int64 [count]; `lengths` are their tokens, None
        where all have as many."""
        if lengths is None or len(self.latest) != int(lengths.sum()):
            return self.latest.view(count, -1).sum(1).cpu()
        owner = torch.arange(count).repeat_interleave(lengths)
        return torch.zeros(count, dtype=torch.int64).index_add(0, owner, self.latest.cpu())

    @property
    def mean(self) -> float:
        """Executed experts per token."""
        return self.total / self.tokens

    @property
    def std(self) -> float:
        """Standard deviation over tokens."""
        return max(0.0, self.sums[2] / self.tokens - self.mean**2) ** 0.5

    def row(self) -> dict[str, float]:
        """The columns of the table of layers."""
        return {"experts": self.mean, "std": self.std}


@contextmanager
def count_executed(model: nn.Module) -> Iterator[dict[str, Executed]]:
    """Count the experts that tokens, but not padding, execute in every MoE layer, by name, over
    all forwards in the block."""
    moes = find(model, MoE)
    counts = {name: Executed() for name in moes}
    by_selection = {moe.selection: counts[name] for name, moe in moes.items()}
    with watch_padding(model) as real_tokens:

        def see(selection: Selection, _scores: Tensor, mask: Tensor) -> None:
            by_selection[selection].add(without_padding(mask, real_tokens()))

        with watch({name: moe.selection for name, moe in moes.items()}, see):
            yield counts


def cost_on(model: nn.Module, split: Split, device: torch.device) -> ModelCost:
    """Mean cost of a split's samples, each without padding."""
    if split.lengths is None:  # all are alike
        inputs, _ = next(batches_of(split, 1, device))
        return model_cost(model, inputs)
    return mean_cost(model, lambda length: _sample(length, device), split.lengths)


def sample_flops(
    model: nn.Module, split: Split, device: torch.device, price: Callable[[ModelCost], float]
) -> Tensor:
    """FLOPs of each of a split's samples, without padding: [samples]. `price` says what of a
    sample's cost counts."""
    lengths = split.lengths
    if lengths is None or (lengths == lengths[0]).all():
        return torch.full((len(split),), float(price(cost_on(model, split, device))))
    one, two, three = (price(model_cost(model, _sample(n, device))) for n in (1, 2, 3))
    return at_lengths(one, two, three, lengths)


def _sample(length: int, device: torch.device) -> Inputs:
    return {"input_ids": torch.zeros(1, length, dtype=torch.int64, device=device)}
