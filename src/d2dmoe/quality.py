"""How well a model predicts, whatever it is made of."""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from d2dmoe.data.batches import iterate
from d2dmoe.data.splits import Batch, Split
from d2dmoe.inputs import logits_of

MAX_LOSS = 700.0  # nats; e to more than that is no float


def batches_of(split: Split, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Inputs and targets of all samples, in the stored order."""
    for raw in iterate(split, batch_size, seed=None):
        yield split.batch(raw, device)


def perplexity(loss: float) -> float:
    """e^loss, of a loss in nats; finite."""
    return math.exp(min(loss, MAX_LOSS))


def quality(
    model: nn.Module, split: Split, batch_size: int, device: torch.device
) -> dict[str, float]:
    """How well the model predicts the targets of a split: classes, or next tokens.

    Returns:
        Means over all targets: accuracy, loss (cross-entropy in nats), and perplexity, e^loss.
    """
    correct, loss, count = 0, 0.0, 0
    with torch.inference_mode():
        for inputs, targets in batches_of(split, batch_size, device):
            logits = logits_of(model, inputs).float().flatten(0, -2)  # [targets, classes]
            targets = targets.flatten()
            correct += int((logits.argmax(-1) == targets).sum())
            loss += float(cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
    mean = loss / count
    return {"accuracy": correct / count, "loss": mean, "perplexity": perplexity(mean)}


def validation_metrics(
    model: nn.Module, split: Split, batch_size: int, device: torch.device
) -> dict[str, float]:
    """The history's validation columns; leaves the model in the mode in which it came."""
    training = model.training
    metrics = quality(model.eval(), split, batch_size, device)
    model.train(training)
    return {f"validation_{name}": metrics[name] for name in ("accuracy", "loss")}


def count_parameters(model: nn.Module) -> int:
    """Trained numbers of a model, tied ones once."""
    return sum(p.numel() for p in model.parameters())
