"""A ViT fine-tuned to halt its tokens."""

from pathlib import Path
from typing import Any

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.data.splits import Batch
from d2dmoe.errors import CheckpointError
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.lookup import look_up
from d2dmoe.methods.avit.halting import (
    MeanField,
    add_halting,
    depth_prior,
    ponder_loss,
    prior_loss,
    quiet_channel,
)
from d2dmoe.methods.avit.options import AViTConfig
from d2dmoe.models import ARCHITECTURES, names_where
from d2dmoe.stages.fitting import fit_model
from d2dmoe.surgery import find, watch
from d2dmoe.training import Losses, cross_entropy_loss


def train_avit(parent: Path, cfg: AViTConfig, run: Run) -> Trained:
    """Fine-tune all weights of a saved dense ViT on task loss + ponder loss + prior loss.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    if not look_up(ARCHITECTURES, spec.architecture, "architecture").halts:
        raise CheckpointError(
            f"A-ViT halts the tokens of a {names_where('halts')}; {parent} is a {spec.architecture}"
        )
    quiet_channel(model)
    add_halting(model, cfg.gamma, cfg.beta)
    encoder: Any = model.encoder
    prior = depth_prior(len(encoder.layers), cfg.depth, cfg.prior_std).to(run.device)
    with watch(find(model, MeanField), lambda _module, trace, _output: trace) as traces:

        def losses(batch: Batch, _progress: float) -> Losses:
            inputs, targets = batch
            task = cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)
            (trace,) = traces.values()
            ponder, kl = ponder_loss(trace), prior_loss(trace, prior)
            loss = task + cfg.ponder_weight * ponder + cfg.prior_weight * kl
            return {"loss": loss, "task": task, "ponder": ponder, "prior": kl}

        history = fit_model(model, losses, cfg, run, f"A-ViT depth {cfg.depth}")
    part = {"depth": cfg.depth, "gamma": cfg.gamma, "beta": cfg.beta}
    return model, spec.with_part("avit", **part), history
