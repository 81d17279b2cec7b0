"""CATS (arXiv 2404.08763) and CHESS (2409.01366): thresholds of an FFN's hidden channels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.errors import ConfigError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.inputs import Inputs
from d2dmoe.jobs.run import Run
from d2dmoe.methods.thresholds.calibration import collected, drawn_inputs, set_quantiles
from d2dmoe.methods.thresholds.layers import rebuild_hidden
from d2dmoe.methods.thresholds.options import ThresholdsConfig
from d2dmoe.seeding import seed_for
from d2dmoe.surgery import find


def calibrate_hidden(parent: Path, cfg: ThresholdsConfig, run: Run) -> Trained:
    """Thresholds of the hidden channels of a saved dense model: CATS and CHESS.

    CHESS weighs a channel by the mean of |up z|, or without a gate by the norm of its column of W2.
    A threshold is that quantile of all scores of a layer above which the target density lies; where
    channels are skipped in experts, of the experts' largest scores.

    Raises:
        UserError: model or data are not in order, or an expert size does not divide.
    """
    model, spec = load_dense_model(parent)
    if cfg.expert_size is not None:
        _sort_into_experts(model, cfg.expert_size, cfg.clustering, run.seed)
    part: dict[str, Any] = {"group": cfg.expert_size or 1, "attention": cfg.attention}
    rebuild_hidden(model, spec, **part).to(run.device)
    inputs = drawn_inputs(cfg, run)
    if cfg.score == "contextual":
        _weigh_channels(model, inputs)
    set_quantiles(model, inputs)
    return model, spec.with_part("thresholds", **part), []


def _sort_into_experts(model: nn.Module, size: int, method: str, seed: int) -> None:
    """Sort the hidden neurons of every FFN, in place, so that each expert's are neighbours: the
    experts that D2DMoE has."""
    for layer, (name, ffn) in enumerate(find(model, FFN).items()):
        if ffn.d_ff % size:
            raise ConfigError(f"expert_size = {size} does not divide the {ffn.d_ff} of {name}")
        rows = ffn.activated.weight
        experts = assign_neurons(rows, ffn.d_ff // size, method, seed_for("split", seed, layer))
        _sort_neurons(ffn, experts.flatten())


@torch.no_grad()
def _sort_neurons(ffn: FFN, order: Tensor) -> None:
    for linear in (ffn.up, ffn.gate):
        if linear is not None:
            linear.weight.copy_(linear.weight[order])
            if linear.bias is not None:
                linear.bias.copy_(linear.bias[order])
    ffn.down.weight.copy_(ffn.down.weight[:, order])


def _weigh_channels(model: nn.Module, inputs: Sequence[Inputs]) -> None:
    """Set the scales of the hidden channels."""
    ffns = find(model, FFN)
    gated = {name: ffn.up for name, ffn in ffns.items() if ffn.gate is not None}
    up = collected(model, gated, inputs, lambda _layer, _z, out: out) if gated else {}
    for name, ffn in ffns.items():
        weight = up[name].abs().mean(0) if name in up else ffn.down.weight.detach().norm(dim=0)
        threshold: Any = ffn.activation.threshold
        threshold.scale.copy_(weight)
