"""A distilled model in the dense model's place (claim C10): a smaller one that learns from it."""

from pathlib import Path

import torch
from torch import nn

from d2dmoe.checkpoint import Trained, fresh_model, load_dense_model
from d2dmoe.compression.distill import distillation_loss
from d2dmoe.config.compression import DistillConfig
from d2dmoe.data.splits import Batch, Split, open_split
from d2dmoe.errors import CheckpointError
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.seeding import seed_for
from d2dmoe.stages.fitting import fit_model
from d2dmoe.training import Losses, cross_entropy_loss


def distill(parent: Path, cfg: DistillConfig, run: Run) -> Trained:
    """Train a student on (1 − w) · task loss + w · imitation of a saved dense model, the teacher.

    The teacher sees the same batches, augmented and mixed, and drops nothing out.

    Raises:
        UserError: model, data or disk are not in order, the training was stopped, or teacher and
            student do not predict the same classes.
    """
    teacher, _spec = load_dense_model(parent)
    teacher.to(run.device).requires_grad_(False)
    train = open_split(run.data, "train")
    torch.manual_seed(seed_for("student", run.seed))
    model, spec = fresh_model(cfg.model, train.about)
    model.to(run.device)
    ours, theirs = (_outputs(net, train, run.device) for net in (model, teacher))
    if ours != theirs:
        raise CheckpointError(f"{parent} predicts {theirs} classes, its student {ours}")

    def losses(batch: Batch, _progress: float) -> Losses:
        inputs, targets = batch
        logits = logits_of(model, inputs)
        with torch.no_grad():
            wanted = logits_of(teacher, inputs)
        task = cross_entropy_loss(logits, targets, cfg.label_smoothing)
        imitation = distillation_loss(logits, wanted, cfg.temperature)
        loss = (1 - cfg.imitation) * task + cfg.imitation * imitation
        return {"loss": loss, "task": task, "imitation": imitation}

    return model, spec, fit_model(model, losses, cfg, run, "distill")


def _outputs(model: nn.Module, split: Split, device: torch.device) -> int:
    """Classes, or tokens of the vocabulary, that a model predicts."""
    inputs, _ = split.batch(split.read(torch.tensor([0])), device)
    with torch.no_grad():
        return logits_of(model, inputs).shape[-1]
