"""Which experts the tokens of a benchmark run: independent of each other, alike in groups, or as
recorded of a converted model; and a router that selects just those.

Real masks lie between the first two: neighbouring tokens often choose alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2dmoe.io.tensors import load_tensors
from d2dmoe.weights import RouterWeights

GROUP = 64  # tokens of a cluster
OWN = 0.1  # share of a clustered token's choices that are its own
TAU = 0.5  # the threshold at which `selecting_router` selects the masks
NOISE = 0.05  # of its scores: standard deviation below it, so that TAU is ten of them away


def bernoulli(tokens: int, n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Each expert independently with probability `fraction`, at least one: bool [tokens, n]."""
    return _none_idle(torch.rand(tokens, n, generator=generator) < fraction, generator)


def clustered(tokens: int, n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Groups of `GROUP` neighbours that share most choices, at least one each: bool [tokens, n]."""
    groups = bernoulli(-(-tokens // GROUP), n, fraction, generator)
    shared = groups.repeat_interleave(GROUP, 0)[:tokens]
    own = torch.rand(tokens, n, generator=generator) < OWN
    choices = torch.where(own, bernoulli(tokens, n, fraction, generator), shared)
    return _none_idle(choices, generator)


def _none_idle(mask: Tensor, generator: torch.Generator) -> Tensor:
    """The mask, with one expert, drawn at random, for tokens that have none."""
    one = torch.randint(mask.shape[1], (len(mask), 1), generator=generator)
    idle = ~mask.any(1, keepdim=True)
    return mask | (idle & (torch.arange(mask.shape[1]) == one))


MASKS = {"bernoulli": bernoulli, "clustered": clustered}


def load_points(paths: Sequence[str]) -> dict[str, Tensor]:
    """The recorded masks, bool [layers, tokens, n] by operating point, of the one file or of none.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    points: dict[str, Tensor] = {}
    for path in paths:
        points |= load_tensors(Path(path), "Delete it and run the same command again.")[0]
    return points


def recorded(points: Mapping[str, Tensor], tokens: int, fraction: float) -> Tensor:
    """What one layer of a converted model selected: that layer, of all layers and operating points,
    whose executed share is nearest. Tokens without an expert (padding) are left out.

    Args:
        points: bool [layers, recorded tokens, n] by operating point.
        tokens: of a call.
        fraction: the wanted share.

    Returns:
        bool [tokens, n].
    """
    layers = {(point, i): own for point, masks in points.items() for i, own in enumerate(masks)}
    mask = nearest(layers, fraction)
    return repeated(mask[mask.any(1)], tokens)


def nearest(masks: Mapping[Any, Tensor], fraction: float) -> Tensor:
    """That of the masks whose executed share is nearest."""
    return min(masks.values(), key=lambda mask: abs(mask.float().mean().item() - fraction))


def repeated(mask: Tensor, tokens: int) -> Tensor:
    """A mask [recorded tokens, n], repeated or cut to the tokens of a call: [tokens, n]."""
    return mask.repeat(-(-tokens // len(mask)), 1)[:tokens]


def with_choices(z: Tensor, mask: Tensor) -> Tensor:
    """Tokens [tokens, d_model] whose first n numbers say 1 or 0: the mask, boolean [tokens, n]."""
    marked = z.clone()
    marked[:, : mask.shape[1]] = mask.to(z.dtype)
    return marked


def selecting_router(
    num_experts: int, width: int, d_model: int, generator: torch.Generator
) -> RouterWeights:
    """A router that selects at `TAU`, in every number format, the mask that `with_choices` wrote.

    A hidden neuron of each expert copies that expert's 0 or 1 to its score. The other neurons are
    random and add too little to change the choice, but as much work as a trained router's.

    Args:
        num_experts: at most `width` and `d_model`.
        width: hidden neurons.
        d_model: width of a token.
        generator: of the random weights.
    """
    others = width - num_experts
    rows = torch.randn(others, d_model, generator=generator) * d_model**-0.5
    noise = torch.randn(num_experts, others, generator=generator) * NOISE * max(1, others) ** -0.5
    up = torch.cat([torch.eye(num_experts, d_model), rows])
    down = torch.cat([torch.eye(num_experts), noise], 1)
    return RouterWeights(up, torch.zeros(width), down, torch.zeros(num_experts), "regression")
