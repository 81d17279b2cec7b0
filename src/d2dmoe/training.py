"""The pipeline's one training loop: AdamW, warm-up, cosine decay, clipping, exact resuming."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.data.splits import Batch
from d2dmoe.distributed import Parts, share_weights, whole_batches, whole_draws
from d2dmoe.errors import UserError
from d2dmoe.graphed import GraphedStep
from d2dmoe.jobs.progress import Progress, logger
from d2dmoe.jobs.state import TrainingState
from d2dmoe.optimizer import lr_at, make_optimizer, set_lr
from d2dmoe.pooling import pooled
from d2dmoe.processes import place, told
from d2dmoe.seeding import seed_for

Losses = dict[str, Tensor]  # scalars by name; "loss" is what is minimised
Done = float | Tensor  # share in [0, 1] of the training; a scalar tensor where steps are graphed
ALONE = ResourcesConfig()


def cross_entropy_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats, the loss of every task.

    Args:
        logits: [batch, classes], or [batch, tokens, vocabulary].
        targets: class indices [batch] or [batch, tokens], or probabilities of the logits' shape.
        label_smoothing: share of the target probability that is spread over all classes.
    """
    targets = targets.flatten(0, -2) if targets.is_floating_point() else targets.flatten()
    logits = logits.flatten(0, -2).float()
    return pooled(cross_entropy(logits, targets, label_smoothing=label_smoothing), len(logits))


def fit(
    trained: nn.Module,
    losses: Callable[[Batch, Done], Losses],
    batches: TrainingBatches,
    cfg: TrainingConfig,
    *,
    name: str,
    state: TrainingState | None = None,
    log_every_s: float = 10.0,
    validate: Callable[[], dict[str, float]] | None = None,
    how: ResourcesConfig = ALONE,
    graphed: bool = False,
) -> list[dict[str, float]]:
    """Minimise `losses(batch, progress)["loss"]` over the parameters of `trained`.

    Args:
        trained: the module whose parameters are trained, in the mode that the caller has set.
        losses: scalars of a batch, given the share in [0, 1] of the training that is done.
        batches: the training data.
        cfg: options of the loop.
        name: of the training, for the log.
        state: saves and restores interrupted trainings; None: neither.
        log_every_s: seconds between progress lines.
        validate: metrics to add to each epoch's row; must leave the module's mode as it was.
        how: several processes train together, each on its share of the batches.
        graphed: on a GPU of its own process, record steps as CUDA graphs: `losses` does the same at
            every call, but for what it reads of its arguments.

    Returns:
        One row per epoch, the last may be a part of one: epoch, lr, the means of all losses, the
        metrics of `validate`.

    Raises:
        UserError: a signal stopped the training (its state is saved), the disk is full, the loss is
            not finite, or batches are too small for so many processes.
    """
    parts = Parts.of(min(cfg.batch_size, len(batches.split)), cfg.accumulate)
    call = share_weights(trained, batches.device, how)
    graphed = graphed and batches.device.type == "cuda" and place().size == 1
    optimizer = make_optimizer(trained, cfg, graphed)
    start, history, sums = 0, [], {}
    if state:
        start, history, sums = state.load(trained, optimizer)
    if start:
        logger.info("%s continues after step %d", name, start)
    total = batches.total
    progress = Progress(name, total, start, log_every_s)

    compute = partial(call, losses)

    def take_step(batch: Batch, done: Done) -> Losses:
        return _train_step(parts.split(batch), done, trained, compute, optimizer, cfg)

    step_of = GraphedStep(take_step, batches.device) if graphed else take_step
    saved = state.training() if state else nullcontext()
    with saved, whole_batches(trained, how):
        for step, batch in enumerate(batches.stream(start), start):
            torch.manual_seed(seed_for("dropout", batches.seed, step))
            set_lr(optimizer, lr_at(step, total, cfg))
            values = step_of(batch, step / total)
            sums = {key: sums.get(key, 0.0) + value for key, value in values.items()}
            if (step + 1) % batches.per_epoch == 0 or step + 1 == total:
                checked = validate and partial(call, validate)
                history.append(_epoch_row(name, step, total, batches, sums, cfg, checked))
                sums = {}
            progress.update(step + 1)
            if state and state.due():
                _check_finite(name, values["loss"], step, cfg)
                state.save(trained, optimizer, step + 1, history, _told(sums))
                state.stop_if_asked(step + 1)
    return history


def _train_step(
    parts: Iterable[tuple[Batch, float]],
    progress: Done,
    trained: nn.Module,
    losses: Callable[[Batch, Done], Losses],
    optimizer: torch.optim.Optimizer,
    cfg: TrainingConfig,
) -> Losses:
    """One update by the parts of a batch and their shares of it; returns the losses as float64
    scalars, still on their device."""
    optimizer.zero_grad(set_to_none=True)
    means: dict[str, Tensor] = {}
    for part, share in parts:
        device = part[1].device.type
        with whole_draws(trained, part[0], len(part[1])):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                values = losses(part, progress)
            (values["loss"] * share).backward()
        for key, value in values.items():
            means[key] = means.get(key, 0.0) + value.detach().double() * share
    if cfg.clip is not None:
        nn.utils.clip_grad_norm_(trained.parameters(), cfg.clip)
    optimizer.step()
    return means


def _epoch_row(
    name: str,
    step: int,
    total: int,
    batches: TrainingBatches,
    sums: dict[str, Tensor],
    cfg: TrainingConfig,
    validate: Callable[[], dict[str, float]] | None,
) -> dict[str, float]:
    """An epoch's row of the history."""
    steps = step % batches.per_epoch + 1  # of this epoch; the last may be cut short
    row = {"epoch": round((step + 1) / batches.per_epoch, 4), "lr": lr_at(step, total, cfg)}
    row |= {key: value / steps for key, value in _told(sums).items()}
    _check_finite(name, row["loss"], step, cfg)
    if validate:
        with torch.no_grad():
            row |= validate()
    numbers = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch")
    logger.info("%s epoch %g: %s", name, row["epoch"], numbers)
    return row


def _told(sums: dict[str, Tensor]) -> dict[str, float]:
    """The means over the processes: of losses that are not `pooled`, those of the whole batch."""
    every = told({key: float(value) for key, value in sums.items()})
    return {key: sum(own[key] for own in every) / len(every) for key in sums}


def _check_finite(name: str, loss: Tensor | float, step: int, cfg: TrainingConfig) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"{name}: the loss is {float(loss)} at step {step + 1}. Lower the learning rate "
            f"(lr = {cfg.lr}) or clip gradients (clip = {cfg.clip})."
        )
