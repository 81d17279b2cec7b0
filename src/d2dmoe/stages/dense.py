"""Stage 1: the dense model, and its fair reference: the same model fine-tuned as long as a
converted one, without any penalty."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from d2dmoe.checkpoint import Trained, fresh_model, load_dense_model
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data import Batch, open_split
from d2dmoe.evaluate import validation_metrics
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.seeding import seed_for
from d2dmoe.training import Losses, TrainingBatches, cross_entropy_loss, fit


def train_dense(model_cfg: ModelConfig, cfg: TrainingConfig, data: Path, run: Run) -> Trained:
    """Build the dense model, load pretrained weights if any, and train it for `cfg.epochs`.

    Raises:
        UserError: data, weights or disk are not in order, or the training was stopped.
    """
    about = open_split(data, "train").about
    torch.manual_seed(seed_for("weights", run.seed))
    model, spec = fresh_model(model_cfg, about)
    return model, spec, fit_task(model, cfg, data, run, "dense")


def finetune(parent: Path, cfg: TrainingConfig, data: Path, run: Run) -> Trained:
    """Train a saved dense model on, with the task's loss alone.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    return model, spec, fit_task(model, cfg, data, run, "finetune")


def fit_task(model: nn.Module, cfg: TrainingConfig, data: Path, run: Run, name: str) -> list[dict]:
    """Train all of the model, in place, on the task's loss; returns the history."""

    def losses(batch: Batch, _progress: float) -> Losses:
        inputs, targets = batch
        return {"loss": cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)}

    return fit_model(model, losses, cfg, data, run, name)


def fit_model(
    model: nn.Module,
    losses: Callable[[Batch, float], Losses],
    cfg: TrainingConfig,
    data: Path,
    run: Run,
    name: str,
) -> list[dict]:
    """Train all of the model, in place, with validation after each epoch; returns the history."""
    model.to(run.device).train()
    validation = open_split(data, "validation")
    part = cfg.batch_size // cfg.accumulate  # what fits into memory in training fits here
    history = fit(
        model,
        losses,
        TrainingBatches(open_split(data, "train"), cfg, run.seed, run.device),
        cfg,
        name=name,
        state=run.state,
        log_every_s=run.log_every_s,
        validate=partial(validation_metrics, model, validation, part, run.device),
    )
    model.eval()
    return history
