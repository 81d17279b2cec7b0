"""How well a model predicts, whatever it is made of."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from d2dmoe.data.batches import iterate, readers
from d2dmoe.data.splits import Batch, Split
from d2dmoe.inputs import Inputs, logits_of
from d2dmoe.processes import place, spread

MAX_LOSS = 700.0  # nats; e to more than that is no float


def batches_of(split: Split, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Inputs and targets of all samples, in the stored order."""
    how: Any = {"workers": readers(split, device), "pin": device.type == "cuda"}
    for raw in iterate(split, batch_size, **how):
        yield split.batch(raw, device)


def own_batches(split: Split, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Of `batches_of`, those that `spread` gives this process to compute."""
    how: Any = {"workers": readers(split, device), "pin": device.type == "cuda"}
    for raw in iterate(split, batch_size, every=place(), **how):
        yield split.batch(raw, device)


def perplexity(loss: float) -> float:
    """e^loss, of a loss in nats; finite."""
    return math.exp(min(loss, MAX_LOSS))


@dataclass(frozen=True)
class Outcomes:
    """What became of each sample: sums over its targets, which are one class or its next tokens."""

    correct: Tensor  # int64 [samples]
    loss: Tensor  # cross-entropy in nats, float64 [samples]
    targets: Tensor  # how many there are, int64 [samples]

    def metrics(self) -> dict[str, float]:
        """Means over all targets: accuracy, loss, and perplexity, e^loss."""
        count = int(self.targets.sum())
        loss = self.loss.sum().item() / count
        accuracy = int(self.correct.sum()) / count
        return {"accuracy": accuracy, "loss": loss, "perplexity": perplexity(loss)}


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several batches, in their order."""
    return Outcomes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Outcomes)))


def outcomes(
    model: nn.Module,
    split: Split,
    batch_size: int,
    device: torch.device,
    beside: Callable[[Tensor], Any] = lambda _samples: None,
) -> tuple[Outcomes, list[Any]]:
    """How the model predicts the targets of a split, in the stored order.

    Args:
        model: in evaluation mode.
        split: every sample counts.
        batch_size: samples per step.
        device: where the model lies.
        beside: called after each batch with its samples' numbers; what it gives, on the CPU, of all
            batches in their order, is returned beside the outcomes.
    """
    batches = own_batches(split, batch_size, device)

    def predict(samples: Tensor) -> tuple[Outcomes, Any]:
        inputs, targets = next(batches)
        return _predicted(model, inputs, targets), beside(samples)

    found = spread(torch.arange(len(split)).split(batch_size), predict)
    parts, others = zip(*found, strict=True)
    return joined(parts), list(others)


@torch.inference_mode()
def _predicted(model: nn.Module, inputs: Inputs, targets: Tensor) -> Outcomes:
    logits = logits_of(model, inputs).float().flatten(0, -2)  # [targets, classes]
    right = logits.argmax(-1) == targets.flatten()
    losses = cross_entropy(logits, targets.flatten(), reduction="none").double()
    right, losses = (x.view(len(targets), -1).sum(1).cpu() for x in (right, losses))
    return Outcomes(right, losses, torch.full((len(targets),), targets[0].numel()))


def quality(
    model: nn.Module, split: Split, batch_size: int, device: torch.device
) -> dict[str, float]:
    """How well the model predicts the targets of a split; see `Outcomes.metrics`."""
    return outcomes(model, split, batch_size, device)[0].metrics()


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
