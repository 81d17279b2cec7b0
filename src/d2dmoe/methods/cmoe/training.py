"""Shared and routed experts from a few samples, and their short fine-tuning."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.data.splits import Batch
from d2dmoe.errors import ConfigError
from d2dmoe.ffn import FFN
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.methods.cmoe.carving import carve_neurons, firing
from d2dmoe.methods.cmoe.options import CMoEConfig
from d2dmoe.methods.cmoe.router import add_analytic_router, layer_kind
from d2dmoe.moe import MoE, set_selection, split_ffn, watch_selections
from d2dmoe.padding import real_tokens, without_padding
from d2dmoe.processes import spread
from d2dmoe.seeding import seed_for
from d2dmoe.stages.drawn import drawn_batches
from d2dmoe.stages.fitting import fit_model
from d2dmoe.surgery import find, replace, watch
from d2dmoe.training import Losses, cross_entropy_loss


def carve(parent: Path, cfg: CMoEConfig, run: Run) -> Trained:
    """Make shared and routed experts of each FFN of a saved dense model, and fine-tune all weights
    on the task where epochs are asked for, at `cfg.top_k` experts a token.

    All layers are watched at once, in the dense model. Without a training the model equals its
    parent as long as every expert runs.

    Raises:
        ConfigError: the expert size does not divide the hidden neurons.
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    ffns = find(model.to(run.device), FFN)
    num_experts = _num_experts(ffns, cfg)
    fires = _watched(model, cfg, run)
    carvings = [
        carve_neurons(fires[name], num_experts, cfg.shared, seed_for("split", run.seed, layer))
        for layer, name in enumerate(ffns)
    ]
    weighted = cfg.epochs > 0

    def make(ffn: FFN, layer: int) -> MoE:
        neurons, representatives = carvings[layer]
        moe = split_ffn(ffn, neurons, layer_kind(weighted))
        add_analytic_router(moe, cfg.shared).take(ffn, representatives.to(run.device))
        return moe

    replace(model, FFN, make)
    set_selection(model, "top_k", cfg.top_k)
    shape = {"num_experts": num_experts, "shared": cfg.shared, "weighted": weighted}
    history = _tune(model, cfg, run) if weighted else []
    return model, spec.with_part("cmoe", **shape), history


def _num_experts(ffns: dict[str, FFN], cfg: CMoEConfig) -> int:
    """Of every layer; an architecture's FFNs are all as wide."""
    for name, ffn in ffns.items():
        if ffn.d_ff % cfg.expert_size:
            raise ConfigError(
                f"clustering.expert_size = {cfg.expert_size} does not divide the {ffn.d_ff} hidden "
                f"neurons of {name}"
            )
    return next(iter(ffns.values())).d_ff // cfg.expert_size


@torch.no_grad()
def _watched(model: nn.Module, cfg: CMoEConfig, run: Run) -> dict[str, Tensor]:
    """Which neurons fire for the real tokens of the samples: by the FFN, bool [tokens, d_ff]."""
    ffns = find(model, FFN)

    def fires(batch: Batch) -> dict[str, Tensor]:
        inputs, _targets = batch
        model(**inputs)
        tokens = {n: without_padding(seen[n], real_tokens(inputs)) for n in ffns}
        return {n: firing(ffn, tokens[n], cfg.firing).cpu() for n, ffn in ffns.items()}

    with watch(ffns, lambda _module, z, _output: z) as seen:
        samples = drawn_batches(run, "cmoe", cfg.samples, cfg.batch_size // cfg.accumulate)
        parts = spread(samples, fires)
    return {name: torch.cat([part[name] for part in parts]) for name in ffns}


def _tune(model: nn.Module, cfg: CMoEConfig, run: Run) -> list[dict]:
    """Train all weights on the task, with the experts that are selected; the offsets follow the
    loads of each batch, in which padding does not count."""
    moes: Any = find(model, MoE)
    with watch_selections(model) as masks:

        def losses(batch: Batch, _progress: float) -> Losses:
            inputs, targets = batch
            loss = cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)
            for name, moe in moes.items():
                mask = without_padding(masks[name], real_tokens(inputs))
                moe.router.balance(mask, cfg.balance_rate)
            return {"loss": loss}

        return fit_model(model, losses, cfg, run, f"CMoE at {cfg.top_k} experts")
