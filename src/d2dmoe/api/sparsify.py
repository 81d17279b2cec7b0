"""Sparsity enforcement of a model in memory: L = L_task + α · L_s (paper section 3.1)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.batch import Batch
from d2dmoe.api.batches import as_batches
from d2dmoe.api.fit import FitConfig, Losses, check_number, fit, in_float32
from d2dmoe.api.losses import SparsityPenalty
from d2dmoe.api.task_loss import Loss, task_loss
from d2dmoe.discovery.examples import example_for
from d2dmoe.errors import ModelError, UserError
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE
from d2dmoe.sparsity import activation_of, alpha_at
from d2dmoe.surgery import find, in_mode


@torch.inference_mode(False)
@torch.enable_grad()
def sparsify(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    lr: float,
    alpha: float,
    mode: str = "relu_hoyer",
    schedule: str = "linear_warmup",
    loss: Loss | None = None,
    example: Any = None,
    batch_size: int = 8,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Fine-tune a model, in place, on its task and the penalty, so that few neurons fire.

    With a mode `relu_…` its FFNs get ReLU first. Trained is what requires gradients, in train mode;
    a model in half precision is trained in float32 and gets its own dtype again.

    Args:
        model: a dense one, not yet converted.
        batches: see `as_batches`; with labels or targets, but for causal language models.
        steps: updates, each on one batch.
        lr: peak learning rate of AdamW, after a warm-up of a tenth of the steps.
        alpha: the penalty's full weight, at least 0.
        mode: what is penalised, a key of `sparsity.PENALTIES`.
        schedule: how the weight is reached, a key of `sparsity.SCHEDULES`.
        loss: the task's, see `task_loss`; None: the model's own or the usual one.
        example: what the model can be called with, to find its FFNs; None: it is made.
        batch_size: rows of a `datasets.Dataset` in a batch.
        seed: of dropout and the order of batches.

    Returns:
        The history, at most 100 rows: step, lr, the means of loss, task and sparsity (L_s), alpha.

    Raises:
        UnknownName: there is no such mode or schedule.
        UserError: the model has no FFNs, an option or a batch is impossible, or the loss is not
            finite.
    """
    cfg = FitConfig(steps, lr, seed)
    check_number("alpha", alpha, or_zero=True)
    activation_of(mode), alpha_at(schedule, alpha, 0.0)  # unknown names, before anything is done
    given = as_batches(batches, model, batch_size=batch_size)
    first = given.first()
    if example is None and not find(model, (FFN, MoE)):
        example = _example(model, first)
    penalty = SparsityPenalty(model, mode, example=example)
    with in_float32(model), in_mode(model, training=True), penalty:

        def losses(batch: Batch, progress: float) -> Losses:
            task = task_loss(model, batch.outputs(model), batch, loss)
            if not task.requires_grad:
                raise UserError("the task's loss has no gradient: it must be computed of outputs")
            sparsity, weight = penalty(), alpha_at(schedule, alpha, progress)
            total = task + weight * sparsity
            return {"loss": total, "task": task, "sparsity": sparsity, "alpha": weight}

        return fit(model, model, losses, given, cfg, "sparsify")


def _example(model: nn.Module, batch: Batch) -> Any:
    """Of a model that does not say what it takes: the first two samples of a batch."""
    try:
        example_for(model)
        return None
    except ModelError:
        given = batch.kwargs or batch.args
        return _first_samples(given, len(batch))


def _first_samples(given: Any, samples: int) -> Any:
    if isinstance(given, dict):
        return {name: _first_samples(x, samples) for name, x in given.items()}
    if isinstance(given, tuple | list):
        return type(given)(_first_samples(x, samples) for x in given)
    of_samples = isinstance(given, Tensor) and given.ndim and len(given) == samples
    return given[:2] if of_samples else given
