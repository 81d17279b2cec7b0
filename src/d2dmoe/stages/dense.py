"""Stage 1: the dense model, and its fair reference: the same model fine-tuned as long as a
converted one, without any penalty."""

from pathlib import Path

import torch

from d2dmoe.checkpoint import Trained, fresh_model, load_dense_model
from d2dmoe.config.stages import DenseConfig
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.data.splits import open_split
from d2dmoe.jobs.run import Run
from d2dmoe.seeding import seed_for
from d2dmoe.stages.fitting import fit_task


def train_dense(_parent: None, cfg: DenseConfig, run: Run) -> Trained:
    """Build the dense model, load pretrained weights if any, and train it for `cfg.epochs`.

    Raises:
        UserError: data, weights or disk are not in order, or the training was stopped.
    """
    about = open_split(run.data, "train").about
    torch.manual_seed(seed_for("weights", run.seed))
    model, spec = fresh_model(cfg.model, about)
    return model, spec, fit_task(model, cfg, run, "dense")


def finetune(parent: Path, cfg: TaskTrainingConfig, run: Run) -> Trained:
    """Train a saved dense model on, with the task's loss alone.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    return model, spec, fit_task(model, cfg, run, "finetune")
