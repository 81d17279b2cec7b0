"""Models whose FFNs run a wanted share of their experts, chosen by random routers or by masks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.benchmark.masks import repeated
from d2dmoe.config.benchmarks import Timed
from d2dmoe.conversion import add_router
from d2dmoe.ffn import FFN
from d2dmoe.kernels.ops import expert_ffn
from d2dmoe.moe import MoE, split_ffn, watch_selections
from d2dmoe.surgery import find, replace
from d2dmoe.weights import scores


class Routed(nn.Module):
    """An MoE layer that runs as it is, or, where a mask is given, by that: its router's scores are
    then computed, for they take time, and not used.

    The compiler leaves it alone, or it would compile every block again for its own τ. Nothing is
    lost: the kernels are opaque to it anyway, and in a CUDA graph Python takes no time.
    """

    def __init__(self, moe: MoE):
        super().__init__()
        self.moe: Any = moe  # has a router
        self.mask: Tensor | None = None  # bool [tokens, n]

    @torch.compiler.disable
    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d_out]
        if self.mask is None:
            return self.moe(z)
        tokens = z.flatten(0, -2)
        scores(tokens, self.moe.router.weights)
        return expert_ffn(tokens, self.mask, self.moe.weights).unflatten(0, z.shape[:-1])


def to_routed(model: nn.Module, cfg: Timed) -> nn.Module:
    """Replace every FFN, in place, by experts of neighbouring neurons with a random router."""

    return replace(model, FFN, lambda ffn, _: Routed(_experts(ffn, cfg)))


def to_experts(model: nn.Module, cfg: Timed) -> nn.Module:
    """The same, but the layers are compiled with what is around them: for models that are compiled
    as one graph."""
    return replace(model, FFN, lambda ffn, _: _experts(ffn, cfg))


def _experts(ffn: FFN, cfg: Timed) -> MoE:
    ffn.set_activation(cfg.activation)
    moe = split_ffn(ffn, torch.arange(ffn.d_ff).view(cfg.num_experts, -1))
    add_router(moe, "regression", cfg.router_width)
    moe.backend.name = "dynamic_k"
    return moe


def route(model: nn.Module, run: Callable[[], object], fraction: float) -> float:
    """Let every layer run about a share of its experts, by its own τ.

    Args:
        model: of `to_routed`.
        run: calls the model; without gradients.
        fraction: the wanted share; τ is that quantile of score / largest score over the tokens.

    Returns:
        The executed share, mean over layers.
    """

    def set_threshold(moe: Any, inputs: tuple[Tensor]) -> None:  # the earlier layers have theirs
        found = moe.router(inputs[0]).float()
        relative = (found / found.amax(-1, keepdim=True)).flatten()
        moe.selection.value = relative.quantile(1 - fraction).item() if fraction < 1 else 0.0

    hooks = [moe.register_forward_pre_hook(set_threshold) for moe in find(model, MoE).values()]
    run()
    for hook in hooks:
        hook.remove()
    with watch_selections(model) as masks:
        run()
    return torch.stack([mask.float().mean() for mask in masks.values()]).mean().item()


def follow(model: nn.Module, masks: Tensor, tokens: int) -> float:
    """Let every layer run by recorded masks, repeated or cut to the tokens, the layers in turn.

    Args:
        model: of `to_routed`.
        masks: bool [layers, recorded tokens, n].
        tokens: of a call.

    Returns:
        The executed share, mean over layers.
    """
    shares = []
    for index, layer in enumerate(find(model, Routed).values()):
        mask = repeated(masks[index % len(masks)], tokens)
        layer.mask = mask.to(layer.moe.up.device)
        shares.append(layer.mask.float().mean())
    return torch.stack(shares).mean().item()
