"""Operating points for budgets of FLOPs: τ is chosen on validation samples, then measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from d2dmoe.api.batch import Batch
from d2dmoe.api.calibrate import calibrate_each
from d2dmoe.api.calibration import Calibration
from d2dmoe.api.task_loss import logits_of
from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import Split, open_split
from d2dmoe.errors import UserError
from d2dmoe.evaluation import Measured, MeasureOptions, evaluate_points
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.moe import set_operating_point
from d2dmoe.quality import batches_of


@dataclass(frozen=True)
class SplitBatches:
    """A split's samples as the library's calls take them, anew in each pass."""

    split: Split
    batch_size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        return batches_of(self.split, self.batch_size, self.device)


class Chosen(NamedTuple):
    """A model and, by budget, its operating points."""

    model: nn.Module
    points: dict[float, Calibration]


def split_loss(outputs: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy of each sample, [samples]. A split's targets are the next tokens already,
    which transformers' models would shift once more."""
    logits = logits_of(outputs)
    assert logits is not None  # our architectures give them
    losses = cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten(), reduction="none")
    return losses.view(len(batch), -1).mean(1)


def evaluate_budgets(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The operating points, one for each budget, as of `evaluation.evaluate_routed`.

    A point's row has the chosen τ too, of all layers or, parted by spaces, of each. Budgets that no
    τ meets are left out, which the log says.

    Args:
        model_path: a saved model with routers.
        knob: `budget` or `layer_budget`.
        cfg: `values` are the budgets; `chosen`, what `choose` found for them, else it is asked.
        run: device, data and log.

    Raises:
        UserError: model or data are not in order, or no budget can be met.
    """
    model, found = cfg["chosen"] if "chosen" in cfg else choose(model_path, knob, cfg, run)

    def set_point(budget: float) -> None:
        set_operating_point(model, "dynamic_k", found[budget].values)

    how = (cfg["batch_size"], run.device, run.log_every_s)
    samples = open_split(run.data, cfg["split"])
    measured = evaluate_points(model, samples, knob, list(found), set_point, *how)
    points = [p | {"tau": _tau(found[p["knob_value"]])} for p in measured.points]
    return measured._replace(points=points)


def choose(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Chosen:
    """The model, and the operating points of those of the budgets that can be met, chosen on
    validation samples.

    Raises:
        UserError: model or data are not in order, or no budget can be met.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    validation = open_split(run.data, "validation")
    batches = SplitBatches(validation, cfg["batch_size"], run.device)
    goals = [{"flops_ratio": budget} for budget in cfg["values"]]
    how: dict[str, Any] = {"per_layer": knob == "layer_budget", "loss": split_loss}
    found: dict[float, Calibration] = {}
    reason: object = ""
    outcomes = calibrate_each(model, batches, goals, **how)
    for budget, outcome in zip(cfg["values"], outcomes, strict=True):
        if isinstance(outcome, Calibration):
            found[budget] = outcome
        else:
            logger.warning("select.%s: %g is left out. %s", knob, budget, outcome)
            reason = outcome
    if not found:
        raise UserError(f"select.{knob} = {cfg['values']}: none can be met. {reason}")
    return Chosen(model, found)


def _tau(found: Calibration) -> str:
    values = found.values.values() if found.value is None else [found.value]
    return " ".join(f"{value:g}" for value in values)
