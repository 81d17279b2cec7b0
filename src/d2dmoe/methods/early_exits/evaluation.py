"""Early exits, measured at every confidence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import Split, open_split
from d2dmoe.errors import CheckpointError
from d2dmoe.evaluation import Measured, MeasureOptions, cost_on, per_sample
from d2dmoe.flops import at_lengths, count
from d2dmoe.inputs import Inputs, logits_of
from d2dmoe.jobs.progress import Progress
from d2dmoe.jobs.run import Run
from d2dmoe.methods.early_exits.leaving import Exits, UpTo, exit_blocks, leave_at, watch_states
from d2dmoe.processes import spread
from d2dmoe.quality import Outcomes, batches_of, count_parameters, own_batches
from d2dmoe.surgery import find


def evaluate_exits(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """Quality and cost of a model with exits at every threshold of the confidence.

    The model runs once; a threshold then chooses among the stored outcomes of all exits. At 0 every
    sample leaves at the first exit, above 1 none leaves early.

    Args:
        model_path: a model with `Exits`.
        knob: the confidence.
        cfg: thresholds; the split, whose samples all count.
        run: device, data and log.

    Raises:
        UserError: model or data are not in order.
    """
    model, spec = load_model(model_path)
    blocks = exit_blocks(model, spec, _exits(model, model_path).every)
    model.to(run.device)
    samples = open_split(run.data, cfg["split"])
    exits = _outcomes(model, blocks, samples, cfg["batch_size"], run)
    costs = exit_costs(model, blocks, samples, run.device)
    counted: dict[str, float] = {"params": count_parameters(model)}
    counted["tokens"] = cost_on(model, samples, run.device).tokens
    points, found = [], []
    for value in cfg["values"]:
        left = leave_at(exits.confidence, value)
        outcomes, flops = exits.at(left), _at(costs, left)
        point = {"knob": knob, "knob_value": value, "flops": flops.sum().item() / len(flops)}
        points.append(point | counted | outcomes.metrics())
        found.append((outcomes, flops))
    return Measured(points, None, per_sample(found))


def _exits(model: nn.Module, path: Path) -> Exits:
    """The exits of a saved model."""
    for exits in find(model, Exits).values():
        return exits
    raise CheckpointError(f"{path} holds a model without early exits")


@dataclass(frozen=True)
class _Outcomes:
    """What became, or would have become, of each sample at each exit, the end being the last.

    Not the logits: those of many classes would not fit into memory.
    """

    confidence: Tensor  # float [exits, samples]; none of the end
    correct: Tensor  # boolean [exits + 1, samples]
    loss: Tensor  # nats, float64 [exits + 1, samples]

    def at(self, left: Tensor) -> Outcomes:
        """What becomes of the samples that leave at those exits, integers [samples]."""
        return Outcomes(_at(self.correct, left), _at(self.loss, left), torch.ones_like(left))


def _at(values: Tensor, left: Tensor) -> Tensor:
    """Of [exits + 1, samples] those at the exits [samples] where the samples leave: [samples]."""
    return values.gather(0, left[None])[0]


def _outcomes(
    model: nn.Module, blocks: Mapping[str, nn.Module], samples: Split, batch_size: int, run: Run
) -> _Outcomes:
    total = math.ceil(len(samples) / batch_size)
    progress = Progress("evaluating exits", total, every_s=run.log_every_s)
    exits: Any = model.get_submodule("exits")
    own = own_batches(samples, batch_size, run.device)

    def predict(index: int) -> tuple[Tensor, ...]:
        inputs, targets = next(own)
        end = logits_of(model, inputs).float()
        answers = exits.answers(states.values())
        progress.update(index + 1)
        found = _outcomes_of(torch.cat([answers, end[None]]), targets)
        return tuple(values.cpu() for values in found)

    with torch.inference_mode(), watch_states(blocks) as states:
        batches = spread(range(total), predict)
    return _Outcomes(*(torch.cat(parts, 1) for parts in zip(*batches, strict=True)))


def _outcomes_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, correctness and loss, from logits [exits + 1, batch, classes]."""
    confidence = logits[:-1].softmax(-1).amax(-1)
    correct = logits.argmax(-1) == targets
    # Not cross_entropy, which has no deterministic form on the GPU for three dimensions.
    chosen = targets.expand(len(logits), -1).unsqueeze(-1)  # [exits + 1, batch, 1]
    loss = -logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
    return confidence, correct, loss.double()


def exit_costs(
    model: nn.Module, blocks: Mapping[str, nn.Module], samples: Split, device: torch.device
) -> Tensor:
    """FLOPs of every sample, without padding, for leaving at each exit and at the end.

    What is counted is the model up to the exit's block and all heads passed, as it really runs.
    What is element-wise, as ZTW's ensembles are, costs nothing (see `flops`).

    Returns:
        int64 [exits + 1, samples].
    """
    exits = [UpTo(model, blocks, index) for index in range(len(blocks) + 1)]

    def costs(inputs: Inputs) -> Tensor:  # [exits + 1, 1]
        return torch.tensor([[count(exit_, inputs)] for exit_ in exits])

    if samples.lengths is None:  # all are alike
        inputs, _ = next(batches_of(samples, 1, device))
        return costs(inputs).expand(-1, len(samples))

    def of_length(length: int) -> Tensor:
        return costs({"input_ids": torch.zeros(1, length, dtype=torch.int64, device=device)})

    one, two, three = map(of_length, (1, 2, 3))
    return at_lengths(one, two, three, samples.lengths)
