"""Operating points for budgets of FLOPs: τ is chosen on validation samples, then measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from d2dmoe.api.batch import Batch
from d2dmoe.api.calibrate import calibrate
from d2dmoe.api.calibration import Calibration
from d2dmoe.api.goals import OutOfReach
from d2dmoe.api.task_loss import logits_of
from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import Split, open_split
from d2dmoe.errors import UserError
from d2dmoe.evaluation import Measured, MeasureOptions, evaluate_points
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.moe import set_operating_point
from d2dmoe.processes import spread
from d2dmoe.quality import batches_of


@dataclass(frozen=True)
class SplitBatches:
    """A split's samples as the library's calls take them, anew in each pass."""

    split: Split
    batch_size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        return batches_of(self.split, self.batch_size, self.device)


def split_loss(outputs: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy of each sample, [samples]. A split's targets are the next tokens already,
    which transformers' models would shift once more."""
    logits = logits_of(outputs)
    assert logits is not None  # our architectures give them
    losses = cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten(), reduction="none")
    return losses.view(len(batch), -1).mean(1)


def calibrate_on(
    model: nn.Module, split: Split, batch_size: int, device: torch.device, **asked: Any
) -> Calibration:
    """`api.calibrate.calibrate` on a split's samples."""
    batches = SplitBatches(split, batch_size, device)
    return calibrate(model, batches, loss=split_loss, **asked)


def evaluate_budgets(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The operating points, one for each budget, as of `evaluation.evaluate_routed`.

    A point's row has the chosen τ too, of all layers or, parted by spaces, of each. Budgets that no
    τ meets are left out, which the log says.

    Raises:
        UserError: model or data are not in order, or no budget can be met.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    how = (cfg["batch_size"], run.device)
    found = _calibrations(model, open_split(run.data, "validation"), how, knob, cfg["values"])

    def choose(budget: float) -> None:
        set_operating_point(model, "dynamic_k", found[budget].values)

    samples = open_split(run.data, cfg["split"])
    measured = evaluate_points(
        model, samples, knob, list(found), choose, *how, log_every_s=run.log_every_s
    )
    points = [p | {"tau": _tau(found[p["knob_value"]])} for p in measured.points]
    return measured._replace(points=points)


def _calibrations(
    model: nn.Module,
    validation: Split,
    how: tuple[int, torch.device],
    knob: str,
    budgets: list[float],
) -> dict[float, Calibration]:
    """Those of the budgets that can be met."""
    per_layer = knob == "layer_budget"

    def search(budget: float) -> Calibration | str:
        try:
            return calibrate_on(model, validation, *how, flops_ratio=budget, per_layer=per_layer)
        except OutOfReach as error:
            return str(error)

    found: dict[float, Calibration] = {}
    reason = ""
    for budget, outcome in zip(budgets, spread(budgets, search), strict=True):
        if isinstance(outcome, Calibration):
            found[budget] = outcome
        else:
            logger.warning("select.%s: %g is left out. %s", knob, budget, outcome)
            reason = outcome
    if not found:
        raise UserError(f"select.{knob} = {budgets}: none can be met. {reason}")
    return found


def _tau(found: Calibration) -> str:
    values = found.values.values() if found.value is None else [found.value]
    return " ".join(f"{value:g}" for value in values)
