"""Quality and cost of a model on a split, at every operating point of a selection rule."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from d2dmoe.data import ImageSplit, iterate, normalise
from d2dmoe.flops import model_cost
from d2dmoe.moe import MoE, set_selection
from d2dmoe.progress import Progress
from d2dmoe.surgery import find, watch


def batches_of(
    split: ImageSplit, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images [batch, 3, H, W] and labels [batch], in the stored order."""
    for images, labels in iterate(split, batch_size, seed=None):
        yield normalise(images.to(device), split.mean, split.std), labels.to(device)


def quality(
    model: nn.Module, split: ImageSplit, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Accuracy and mean cross-entropy (nats) over all samples of the split."""
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for inputs, labels in batches_of(split, batch_size, device):
            logits = model(inputs).float()
            correct += int((logits.argmax(-1) == labels).sum())
            loss += float(cross_entropy(logits, labels, reduction="sum"))
    return {"accuracy": correct / len(split), "loss": loss / len(split)}


def validation_accuracy(
    model: nn.Module, split: ImageSplit, batch_size: int, device: torch.device
) -> dict[str, float]:
    """The history's validation column; leaves the model in the mode in which it came."""
    training = model.training
    accuracy = quality(model.eval(), split, batch_size, device)["accuracy"]
    model.train(training)
    return {"validation_accuracy": accuracy}


def evaluate_dense(
    model: nn.Module, split: ImageSplit, batch_size: int, device: torch.device
) -> list[dict]:
    """The one operating point of a model without routers, as a list of one row."""
    flops = model_cost(model, sample_of(split, device)).dense
    row = {"knob": "none", "knob_value": "", "flops": float(flops), "params": _params(model)}
    return [row | quality(model, split, batch_size, device)]


def evaluate_routed(
    model: nn.Module,
    split: ImageSplit,
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
        rule: `dynamic_k`, `top_k` or `coverage`.
        values: the rule's operating points (τ, k or p).
        batch_size: samples per step.
        device: where the model lies.
        log_every_s: seconds between progress lines.

    Returns:
        Rows of operating points (knob, knob_value, flops per sample, params, accuracy, loss), and
        rows of layers (knob, knob_value, layer, num_experts, experts: the mean that a token
        executes, std: the standard deviation over tokens).

    Raises:
        ValueError: the model has no routers.
    """
    moes = find(model, MoE).values()
    if not moes or any(moe.router is None for moe in moes):
        raise ValueError("the model has no routers; evaluate_dense measures dense models")
    cost = model_cost(model, sample_of(split, device))
    progress = Progress(f"evaluating {rule}", len(values), every_s=log_every_s)
    points, layers = [], []
    for index, value in enumerate(values):
        set_selection(model, rule, value)
        with count_executed(model) as executed:
            metrics = quality(model, split, batch_size, device)
        knob = {"knob": rule, "knob_value": value}
        per_sample = {name: e.total / len(split) for name, e in executed.items()}
        points.append(knob | {"flops": cost.total(per_sample), "params": _params(model)} | metrics)
        layers += [
            knob
            | {"layer": layer, "num_experts": cost.layers[name].num_experts}
            | {"experts": e.mean, "std": e.std}
            for layer, (name, e) in enumerate(executed.items())
        ]
        progress.update(index + 1)
    return points, layers


class Executed:
    """Running count of the experts that tokens execute in one layer."""

    def __init__(self):
        self.tokens = self.total = self.squares = 0

    def add(self, mask: Tensor) -> None:
        """Count a mask, boolean [..., num_experts]."""
        per_token = mask.sum(-1)
        self.tokens += per_token.numel()
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


@contextmanager
def count_executed(model: nn.Module) -> Iterator[dict[str, Executed]]:
    """Count the executed experts of every MoE layer, by name, over all forwards in the block."""
    moes = find(model, MoE)
    counts = {name: Executed() for name in moes}
    by_selection = {moe.selection: counts[name] for name, moe in moes.items()}
    selections = {name: moe.selection for name, moe in moes.items()}
    with watch(selections, lambda selection, _scores, mask: by_selection[selection].add(mask)):
        yield counts


def sample_of(split: ImageSplit, device: torch.device) -> Tensor:
    """The split's first sample, [1, 3, H, W], for counting FLOPs."""
    inputs, _ = next(batches_of(split, 1, device))
    return inputs


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
