"""The layers' sensitivities of a model in memory, by which AdapMoE's rule selects experts."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from d2dmoe.api.batches import as_batches
from d2dmoe.api.task_loss import Loss, sample_losses
from d2dmoe.errors import UserError
from d2dmoe.moe import MoE
from d2dmoe.sensitivity import SensitivityMeter, set_sensitivities
from d2dmoe.surgery import find, in_mode


@torch.inference_mode(False)
@torch.enable_grad()
def measure_sensitivity(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss | None = None, batch_size: int = 8
) -> dict[str, float]:
    """Measure how sensitive the loss is to the output of each converted layer, and tell the layers.

    The rule `sensitivity` then runs more experts where errors cost more:
    `set_operating_point(model, "sensitivity", T)`, or `calibrate(…, rule="sensitivity")`. Saved
    models keep it. The model is in eval mode meanwhile, with every expert on; no weight changes.

    Args:
        model: converted.
        batches: training samples, tens to hundreds: see `as_batches`.
        loss: as for `evaluate`; one value a sample, or what sums over samples cannot be told from.
        batch_size: rows of a `datasets.Dataset` in a batch.

    Returns:
        The mean squared gradient of a sample's loss at each layer's output, by the layers' names,
        relative to the largest: in [0, 1].

    Raises:
        UserError: the model has no experts, batches or targets are not as they should be, or the
            loss has no finite gradient.
    """
    if not find(model, MoE):
        raise UserError(f"{type(model).__name__} has no experts: convert it first")
    given = as_batches(batches, model, batch_size=batch_size)
    with in_mode(model, training=False), SensitivityMeter(model).watching() as meter:
        for batch in given:
            losses = sample_losses(model, batch.outputs(model), batch, loss)
            meter.add((losses.sums / losses.counts.clamp(min=1)).sum())
    found = meter.relative()
    set_sensitivities(model, found)
    return found
