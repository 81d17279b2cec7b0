"""CMoE's router, whose weights are those of neurons, and the layer that weighs experts by it.

A routed expert is scored by what its representative neuron gives: |act(w·z)|, or of a gated FFN
|act(w_gate·z) (w_up·z)|, with rows of unit length; a softmax over the routed experts changes no
rank. Fine-tuning adds two things: a routed expert's output is weighted by 1 + scale · probability,
the scale being learnt from 0 on, and an offset of the probabilities balances the experts' loads.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE
from d2dmoe.pooling import total
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import replace
from d2dmoe.weights import activation_function

SMALLEST = 1e-12  # of the lengths that are divided by


def row_lengths(layer: nn.Linear) -> Tensor:
    """L2 norms of a map's rows: [d_ff]."""
    return layer.weight.norm(dim=1)


class AnalyticRouter(nn.Module):
    """Scores of n experts, the shared ones first; these rank before all routed ones, and among
    themselves in their order.

    Parameters: `up` and, if the FFN is gated, `gate`, maps [routed, d_model] of unit rows; `scale`
    and the buffer `offset`, both [routed], 0 unless fine-tuned.
    """

    def __init__(self, moe: MoE, shared: int):
        """Of a layer's shape, activation, device and dtype; the maps' weights are uninitialised."""
        super().__init__()
        self.shared, routed = shared, moe.num_experts - shared
        place: Any = {"device": moe.up.device, "dtype": moe.weights.dtype}
        self.up = nn.Linear(moe.d_model, routed, moe.up_bias is not None, **place)
        self.gate = None
        if moe.gate is not None:
            self.gate = nn.Linear(moe.d_model, routed, moe.gate_bias is not None, **place)
        self.scale = nn.Parameter(torch.zeros(routed, **place))
        self.register_buffer("offset", torch.zeros(routed, **place))
        self.offset: Tensor
        self._activate = activation_function(moe.activation_name)

    def hidden(self, z: Tensor) -> Tensor:
        """|h| of the representative neurons: [..., d_model] -> [..., routed]."""
        if self.gate is None:
            return self._activate(self.up(z)).abs()
        return (self._activate(self.gate(z)) * self.up(z)).abs()

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., n]
        routed = self.hidden(z).float().softmax(-1) + self.offset
        largest = torch.finfo(routed.dtype).max
        order = torch.arange(1, self.shared + 1, device=z.device, dtype=routed.dtype)
        first = (largest / order).expand(*routed.shape[:-1], self.shared)
        return torch.cat([first, routed], -1)

    def output_weights(self, scores: Tensor) -> Tensor:
        """What the experts' outputs are weighted by, 1 for shared ones: [..., n] -> [..., n]."""
        routed = 1 + (scores[..., self.shared :] - self.offset) * self.scale
        return torch.cat([torch.ones_like(scores[..., : self.shared]), routed], -1)

    @torch.no_grad()
    def take(self, ffn: FFN, representatives: Tensor) -> None:
        """Copy the rows of an FFN's neurons, integers [routed], at unit length."""
        for own, layer in ((self.up, ffn.up), (self.gate, ffn.gate)):
            if own is not None and layer is not None:
                lengths = row_lengths(layer)[representatives].clamp(min=SMALLEST)
                own.weight.copy_(layer.weight[representatives] / lengths.unsqueeze(1))
                if layer.bias is not None:
                    own.bias.copy_(layer.bias[representatives] / lengths)

    @torch.no_grad()
    def balance(self, mask: Tensor, rate: float) -> None:
        """Lower the offsets of routed experts that more than the mean of tokens chose, and raise
        the others'. `mask` is boolean [tokens, n]."""
        loads = total(mask[..., self.shared :].flatten(0, -2).sum(0)).float()
        self.offset -= rate * (loads - loads.mean()).sign()


class WeightedMoE(MoE):
    """Experts whose outputs are weighted by an analytic router; computed as dense experts, for the
    kernels sum without weights."""

    def run(self, z: Tensor, backend: str) -> Tensor:
        router: Any = self.router
        scores = router(z)
        mask = self.selection(scores)
        weights = torch.where(mask, router.output_weights(scores), 0).to(z.dtype)
        hidden = self.hidden(z) * weights.unsqueeze(-1)
        return linear(hidden.flatten(-2), self.down.flatten(0, 1).T, self.down_bias)


def add_analytic_router(moe: MoE, shared: int) -> AnalyticRouter:
    """Give a layer, in place, an analytic router with uninitialised maps; returns the router."""
    layer: Any = moe
    layer.router = AnalyticRouter(moe, shared).train(moe.training)
    return layer.router


def layer_kind(weighted: bool) -> type[MoE]:
    """The class of the layers of a fine-tuned model, or of one that is not."""
    return WeightedMoE if weighted else MoE


def rebuild(
    model: nn.Module, spec: ModelSpec, num_experts: int, shared: int, weighted: bool
) -> nn.Module:
    """Experts and analytic routers with fresh weights in place of the FFNs."""

    def make(ffn: FFN, _index: int) -> MoE:
        moe = layer_kind(weighted)(ffn, num_experts)
        add_analytic_router(moe, shared)
        return moe

    return replace(model, FFN, make)
