"""The baseline A-ViT: a ViT fine-tuned to halt its tokens, and what they cost."""

from pathlib import Path

import torch
from torch import Tensor

from d2dmoe.checkpoint import HaltingSpec, Trained, load_dense_model
from d2dmoe.config.avit import AViTConfig
from d2dmoe.conversion import load_model
from d2dmoe.data import Batch, open_split
from d2dmoe.errors import CheckpointError
from d2dmoe.evaluate import cost_on, quality
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.methods.avit.halting import (
    MeanField,
    Trace,
    add_halting,
    depth_prior,
    halting_flops,
    ponder_loss,
    prior_loss,
    quiet_channel,
)
from d2dmoe.stages.dense import fit_model
from d2dmoe.surgery import find, watch
from d2dmoe.training import Losses, cross_entropy_loss


def train_avit(parent: Path, cfg: AViTConfig, data: Path, run: Run) -> Trained:
    """Fine-tune all weights of a saved dense ViT on task loss + ponder loss + prior loss.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    if spec.architecture != "vit":
        raise CheckpointError(f"A-ViT halts the tokens of a vit; {parent} is a {spec.architecture}")
    quiet_channel(model)
    add_halting(model, cfg.gamma, cfg.beta)
    prior = depth_prior(len(model.encoder.layers), cfg.depth, cfg.prior_std).to(run.device)
    with watch(find(model, MeanField), lambda _module, trace, _output: trace) as traces:

        def losses(batch: Batch, _progress: float) -> Losses:
            inputs, targets = batch
            task = cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)
            (trace,) = traces.values()
            ponder, kl = ponder_loss(trace), prior_loss(trace, prior)
            loss = task + cfg.ponder_weight * ponder + cfg.prior_weight * kl
            return {"loss": loss, "task": task, "ponder": ponder, "prior": kl}

        history = fit_model(model, losses, cfg, data, run, f"A-ViT depth {cfg.depth}")
    halting = HaltingSpec(depth=cfg.depth, gamma=cfg.gamma, beta=cfg.beta)
    return model, spec.with_(halting=halting), history


def evaluate_halting(
    model_path: Path, data: Path, split: str, batch_size: int, run: Run
) -> tuple[list[dict], list[dict]]:
    """The one operating point of a saved A-ViT.

    Returns:
        A row with the columns of `evaluate.evaluate_routed`'s points, its knob the target depth;
        and rows layer, tokens: the mean number that the block computes for a sample.

    Raises:
        UserError: model or data are not in order.
    """
    model, spec = load_model(model_path)
    if spec.halting is None:
        raise CheckpointError(f"{model_path} holds a model whose tokens do not halt")
    model.to(run.device)
    samples = open_split(data, split)
    parts: list[Tensor] = []  # running tokens, [layers, batch] each

    def see(_module: MeanField, trace: Trace, _output: Tensor) -> None:
        parts.append(trace.running.cpu())

    with watch(find(model, MeanField), see):
        metrics = quality(model, samples, batch_size, run.device)
    running = torch.cat(parts, 1)  # [layers, samples]
    cost = cost_on(model, samples, run.device)
    point = {"knob": "depth", "knob_value": spec.halting.depth}
    point |= {"flops": halting_flops(model, float(cost.dense), running)}
    point |= {"params": sum(p.numel() for p in model.parameters()), "tokens": cost.tokens}
    layers = [
        {"layer": layer, "tokens": float(mean)}
        for layer, mean in enumerate(running.double().mean(1))
    ]
    return [point | metrics], layers
