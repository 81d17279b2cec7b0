"""Which experts are removed, and layers without them (SEER-MoE).

An expert's mass is the sum of what its router predicts of it over tokens: here, of the norms of its
outputs. Layers differ in the scale of their norms, so experts of several layers are compared by
their mass relative to their layer's mean.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.moe import MoE, set_operating_point
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find

SMALLEST = 1e-12  # of the masses that are divided by


def kept_experts(masses: Mapping[str, Tensor], removed: float, scope: str) -> dict[str, Tensor]:
    """The experts that stay, in their order; one of each layer at least, the one of most mass.

    Args:
        masses: of each layer's experts, [n], by the layer's name.
        removed: share of all experts, in [0, 1); whole numbers of them are removed.
        scope: `layer`: as large a share of each layer; `global`: the lowest of all.

    Returns:
        Integers by the layer's name.
    """
    parts = {"layer": [{k: v} for k, v in masses.items()], "global": [dict(masses)]}[scope]
    return {name: own for part in parts for name, own in _lowest_removed(part, removed).items()}


def _lowest_removed(masses: dict[str, Tensor], removed: float) -> dict[str, Tensor]:
    relative = {name: mass / mass.mean().clamp(min=SMALLEST) for name, mass in masses.items()}
    keys = torch.cat([_protected(mass) for mass in relative.values()])
    lowest = keys.argsort(stable=True)[: round(removed * len(keys))]
    stays = torch.ones_like(keys, dtype=torch.bool)
    stays[lowest] = False
    stays |= keys.isinf()
    sizes = [len(mass) for mass in masses.values()]
    own = stays.split(sizes)
    return {name: x.nonzero().flatten() for name, x in zip(masses, own, strict=True)}


def _protected(mass: Tensor) -> Tensor:
    """The largest of a layer is never among the lowest."""
    return mass.index_fill(0, mass.argmax(), torch.inf)


@torch.no_grad()
def keep_experts(moe: MoE, kept: Tensor) -> None:
    """Remove a layer's other experts, in place, and their outputs of its router.

    Args:
        moe: with a router of ours, or without any.
        kept: integers, in the order that the experts shall have.
    """
    for name in ("up", "up_bias", "gate", "gate_bias", "down"):
        weight = getattr(moe, name)
        if weight is not None:
            setattr(moe, name, nn.Parameter(weight[kept], weight.requires_grad))
    moe.num_experts = len(kept)
    if moe.router is not None:
        layers: Any = moe.router.layers
        last = layers[2]
        for name in ("weight", "bias"):
            old = getattr(last, name)
            setattr(last, name, nn.Parameter(old[kept], old.requires_grad))
        last.out_features = len(kept)


def executed(share: float, num_experts: int) -> int:
    """How many of the experts left a token runs: the nearest number to a share, 1 at least."""
    return max(1, round(share * num_experts))


def run_share(model: nn.Module, share: float) -> None:
    """Let tokens run a share, in [0, 1], of the experts that each layer has left, by top-k."""
    counts = {name: executed(share, moe.num_experts) for name, moe in find(model, MoE).items()}
    set_operating_point(model, "top_k", counts)


def rebuild(model: nn.Module, spec: ModelSpec, kept: dict[str, int]) -> nn.Module:
    """Layers with as many experts as were kept, by the layers' names."""
    for name, moe in find(model, MoE).items():
        keep_experts(moe, torch.arange(kept[name]))
    return model
