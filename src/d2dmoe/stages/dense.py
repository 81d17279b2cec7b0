"""Stage 1: the dense model, and its fair reference: the same model fine-tuned as long as a
converted one, without any penalty."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from d2dmoe.checkpoint import ModelSpec, Trained, load_dense_model
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data import open_split
from d2dmoe.evaluate import validation_accuracy
from d2dmoe.models import build_model, load_pretrained
from d2dmoe.run import Run
from d2dmoe.seeding import seed_for
from d2dmoe.training import Batch, Losses, TrainingBatches, fit, task_loss

VALIDATION_BATCH = 250  # samples per forward


def train_dense(model_cfg: ModelConfig, cfg: TrainingConfig, data: Path, run: Run) -> Trained:
    """Build the dense model, load pretrained weights if any, and train it for `cfg.epochs`.

    Raises:
        UserError: data, weights or disk are not in order, or the training was stopped.
    """
    train = open_split(data, "train")
    size = train.batch(torch.zeros(1, dtype=torch.int64)).shape[-1]
    torch.manual_seed(seed_for("weights", run.seed))
    model = build_model(model_cfg, size, len(train.classes))
    load_pretrained(model, model_cfg, len(train.classes))
    spec = ModelSpec(
        model=model_cfg,
        image_size=size,
        classes=train.classes,
        mean=train.mean,
        std=train.std,
    )
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
        return {"loss": task_loss(model(batch[0]), batch[1], cfg)}

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
    history = fit(
        model,
        losses,
        TrainingBatches(open_split(data, "train"), cfg, run.seed, run.device),
        cfg,
        name=name,
        state=run.state,
        log_every_s=run.log_every_s,
        validate=partial(validation_accuracy, model, validation, VALIDATION_BATCH, run.device),
    )
    model.eval()
    return history
