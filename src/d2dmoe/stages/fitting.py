"""How stages train: on the training split of the run's data, resumable, with its log."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from d2dmoe.config.training import TaskTrainingConfig, TrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.data.share import Share
from d2dmoe.data.splits import Batch, open_split
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.processes import place
from d2dmoe.quality import validation_metrics
from d2dmoe.training import Losses, cross_entropy_loss, fit

MakeLosses = Callable[[Batch, Any], Losses]  # of a batch and `training.Done`


def fit_part(
    trained: nn.Module,
    losses: MakeLosses,
    cfg: TrainingConfig,
    run: Run,
    name: str,
    validated: nn.Module | None = None,
) -> list[dict]:
    """Train a module, in place and in the mode that it has; returns the history.

    Args:
        trained: whose parameters are trained.
        losses: see `training.fit`; where the run asks for CUDA graphs, steps are recorded.
        cfg: length and options of the training.
        run: seed, device, data and state.
        name: of the training, for the log.
        validated: what is measured on validation samples after each epoch; None: nothing.
    """
    samples = open_split(run.data, "train")
    validate = None
    if validated is not None:
        held_out = open_split(run.data, "validation")
        part = cfg.batch_size // cfg.accumulate  # what fits into memory in training fits here
        validate = partial(validation_metrics, validated, held_out, part, run.device)
    return fit(
        trained,
        losses,
        TrainingBatches(samples, cfg, run.seed, run.device, Share(*place())),
        cfg,
        name=name,
        state=run.state,
        log_every_s=run.log_every_s,
        validate=validate,
        how=run.resources,
        graphed=run.graphs,
    )


def fit_model(
    model: nn.Module, losses: MakeLosses, cfg: TrainingConfig, run: Run, name: str
) -> list[dict]:
    """Train all of the model, in place, with validation after each epoch; returns the history."""
    model.to(run.device).train()
    history = fit_part(model, losses, cfg, run, name, validated=model)
    model.eval()
    return history


def fit_task(model: nn.Module, cfg: TaskTrainingConfig, run: Run, name: str) -> list[dict]:
    """Train all of the model, in place, on the task's loss; returns the history."""

    def losses(batch: Batch, _progress: float) -> Losses:
        inputs, targets = batch
        return {"loss": cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)}

    return fit_model(model, losses, cfg, run, name)
