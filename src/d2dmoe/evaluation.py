"""Quality and cost of a model on a split, at every operating point of a selection rule.

A routed model may run by the kernels, which `moe` loads by name: so they are imported here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor, nn

from d2dmoe.data.splits import Split
from d2dmoe.flops import ModelCost, mean_cost, model_cost
from d2dmoe.inputs import Inputs
from d2dmoe.jobs.progress import Progress
from d2dmoe.kernels import ops  # noqa: F401
from d2dmoe.moe import MoE, set_selection
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.quality import batches_of, count_parameters, quality
from d2dmoe.selection import Selection
from d2dmoe.surgery import find, watch


class MeasureOptions(TypedDict):
    """How a saved model's operating points are measured."""

    split: str  # whose samples all count
    batch_size: int
    values: list[float]  # of the knob; empty where there is one operating point


def evaluate_dense(
    model: nn.Module, split: Split, batch_size: int, device: torch.device
) -> list[dict]:
    """The one operating point of a model without routers, as a list of one row."""
    cost = cost_on(model, split, device)
    row = {
        "knob": "none",
        "knob_value": "",
        "flops": float(cost.dense),
        "params": count_parameters(model),
    }
    return [row | {"tokens": cost.tokens} | quality(model, split, batch_size, device)]


def evaluate_routed(
    model: nn.Module,
    split: Split,
    rule: str,
    values: list[float],
    batch_size: int,
    device: torch.device,
    log_every_s: float = 10.0,
) -> tuple[list[dict], list[dict]]:
    """Every operating point of a rule.

    Args:
        model: converted, with routers, in evaluation mode.
        split: every sample counts.
        rule: a name of `selection_rules.RULES`.
        values: the rule's operating points (τ, k or p).
        batch_size: samples per step.
        device: where the model lies.
        log_every_s: seconds between progress lines.

    Returns:
        Rows of operating points (knob, knob_value, flops per sample, params, tokens per sample and
        the metrics of `quality`), and rows of layers (knob, knob_value, role: ffn or the attention
        projection q, k, v, o, layer: the block's index, num_experts, experts: the mean that a token
        executes, std: the standard deviation over tokens).

    Raises:
        ValueError: the model has no routers.
    """
    moes = find(model, MoE)
    if not moes or any(moe.router is None for moe in moes.values()):
        raise ValueError("the model has no routers; evaluate_dense measures dense models")
    places = _places(moes)
    cost, params = cost_on(model, split, device), count_parameters(model)
    progress = Progress(f"evaluating {rule}", len(values), every_s=log_every_s)
    points, layers = [], []
    for index, value in enumerate(values):
        set_selection(model, rule, value)
        with count_executed(model) as executed:
            metrics = quality(model, split, batch_size, device)
        knob = {"knob": rule, "knob_value": value}
        per_sample = {name: e.total / len(split) for name, e in executed.items()}
        counted = {"flops": cost.total(per_sample), "params": params, "tokens": cost.tokens}
        points.append(knob | counted | metrics)
        layers += [knob | place | executed[name].row() for name, place in places.items()]
        progress.update(index + 1)
    return points, layers


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
        self.tokens = self.total = self.squares = 0

    def add(self, mask: Tensor) -> None:
        """Count a mask, boolean [tokens, num_experts]."""
        per_token = mask.sum(-1)
        self.tokens += len(mask)
        self.total += int(per_token.sum())
        self.squares += int(per_token.square().sum())

    @property
    def mean(self) -> float:
        """Executed experts per token."""
        return self.total / self.tokens

    @property
    def std(self) -> float:
        """Standard deviation over tokens."""
        return max(0.0, self.squares / self.tokens - self.mean**2) ** 0.5

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

    def sample(length: int) -> Inputs:
        return {"input_ids": torch.zeros(1, length, dtype=torch.int64, device=device)}

    return mean_cost(model, sample, split.lengths)
