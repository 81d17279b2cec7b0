"""Thresholds by the activations of training samples: quantiles of their scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.inputs import Inputs
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.methods.thresholds.layers import LEVELS, Threshold
from d2dmoe.methods.thresholds.options import InputThresholdsConfig, ThresholdsConfig
from d2dmoe.padding import real_tokens, without_padding
from d2dmoe.processes import spread
from d2dmoe.stages.drawn import drawn_batches
from d2dmoe.surgery import find, watch

MOST_TOKENS = 4096  # of which a layer's values are kept, of those that the samples have


def drawn_inputs(cfg: ThresholdsConfig | InputThresholdsConfig, run: Run) -> list[Inputs]:
    """Batches of training samples to calibrate by."""
    drawn = drawn_batches(run, "thresholds", cfg.samples, cfg.batch_size)
    return [inputs for inputs, _targets in drawn]


def set_quantiles(model: nn.Module, inputs: Sequence[Inputs]) -> None:
    """Fill the tables of all thresholds, each with the quantiles of its own scores."""
    thresholds = find(model, Threshold)
    values = collected(model, thresholds, inputs, lambda _layer, z, _out: z)
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
def collected(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    inputs: Sequence[Inputs],
    see: Callable[[Any, Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """What is seen of each module's calls on real tokens, [tokens, width], some of them where there
    are many."""
    most = max(1, MOST_TOKENS // len(inputs))

    def some(batch: Inputs) -> dict[str, Tensor]:
        model(**batch)
        real = real_tokens(batch)
        return {n: _spread(without_padding(x, real), most).cpu() for n, x in seen.items()}

    with watch(modules, see) as seen:
        parts = spread(inputs, some)
    device = next(model.parameters()).device
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in modules}


def _spread(values: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spaced."""
    if len(values) <= most:
        return values
    return values[torch.linspace(0, len(values) - 1, most).round().long()]
