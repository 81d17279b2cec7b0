"""Thresholds by the activations of training samples: quantiles, which for TEAL a search chooses."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.errors import ConfigError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.inputs import Inputs, real_tokens
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.methods.thresholds.greedy import find_paths
from d2dmoe.methods.thresholds.layers import (
    LEVELS,
    Threshold,
    rebuild_hidden,
    rebuild_inputs,
)
from d2dmoe.methods.thresholds.options import InputThresholdsConfig, ThresholdsConfig
from d2dmoe.padding import without_padding
from d2dmoe.seeding import seed_for
from d2dmoe.stages.drawn import drawn_batches
from d2dmoe.surgery import find, watch

MOST_TOKENS = 4096  # of which a layer's values are kept, of those that the samples have


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
    inputs = _inputs(cfg, run)
    if cfg.score == "contextual":
        _weigh_channels(model, inputs)
    _set_quantiles(model, inputs)
    return model, spec.with_part("thresholds", **part), []


def calibrate_inputs(parent: Path, cfg: InputThresholdsConfig, run: Run) -> Trained:
    """Thresholds of the inputs of all linear maps of a saved dense model: TEAL.

    A threshold is that quantile of |x| above which the map's density lies, which a greedy search
    finds for each target density, the mean of a block by cost.

    Raises:
        UserError: model or data are not in order.
    """
    model, spec = load_dense_model(parent)
    rebuild_inputs(model, spec).to(run.device)
    inputs = _inputs(cfg, run)
    _set_quantiles(model, inputs)
    targets = torch.linspace(0, 1, LEVELS)
    for threshold, density in find_paths(model, inputs, cfg.step, targets):
        threshold.table = torch.stack([threshold.at(float(x)) for x in density])
    return model, spec.with_part("input_thresholds"), []


def _inputs(cfg: ThresholdsConfig | InputThresholdsConfig, run: Run) -> list[Inputs]:
    drawn = drawn_batches(run, "thresholds", cfg.samples, cfg.batch_size)
    return [inputs for inputs, _targets in drawn]


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
    up = _collected(model, gated, inputs, lambda _layer, _z, out: out)
    for name, ffn in ffns.items():
        weight = up[name].abs().mean(0) if name in up else ffn.down.weight.detach().norm(dim=0)
        threshold: Any = ffn.activation.threshold
        threshold.scale.copy_(weight)


def _set_quantiles(model: nn.Module, inputs: Sequence[Inputs]) -> None:
    """Fill the tables of all thresholds, each with the quantiles of its own scores."""
    thresholds = find(model, Threshold)
    values = _collected(model, thresholds, inputs, lambda _layer, z, _out: z)
    for name, threshold in thresholds.items():
        threshold.table.copy_(quantiles(threshold.scores(values[name])))
        logger.info(
            "%s: %d units, half of them below %.3g", name, threshold.units, threshold.at(0.5)
        )


def quantiles(scores: Tensor) -> Tensor:
    """The thresholds above which the shares 1, 0.999, …, 0 of the scores are: [LEVELS], of which
    the first is 0, so that what is above it is everything, whatever comes later."""
    ordered = scores.flatten().float().sort().values
    places = torch.linspace(0, len(ordered) - 1, LEVELS, device=ordered.device).round().long()
    table = ordered[places]
    table[0] = 0
    return table


@torch.inference_mode()
def _collected(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    inputs: Sequence[Inputs],
    see: Callable[[Any, Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """What is seen of each module's calls on real tokens, [tokens, width], some of them where there
    are many."""
    parts: dict[str, list[Tensor]] = {name: [] for name in modules}
    most = max(1, MOST_TOKENS // len(inputs))
    with watch(modules, see) as seen:
        for batch in inputs:
            model(**batch)
            for name, values in seen.items():
                parts[name].append(_spread(without_padding(values, real_tokens(batch)), most))
    return {name: torch.cat(values) for name, values in parts.items()}


def _spread(values: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spaced."""
    if len(values) <= most:
        return values
    return values[torch.linspace(0, len(values) - 1, most).round().long()]
