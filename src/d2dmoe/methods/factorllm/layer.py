"""FactorLLM's layer: K of N experts stand for all of them, so their sum is scaled by N / K."""

from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.lookup import look_up
from d2dmoe.moe import MoE
from d2dmoe.selection_rules import RULES
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import replace


class LinearRouter(nn.Module):
    """One linear map to N logits; scores are their softmax."""

    def __init__(self, moe: MoE):
        """A fresh one, of a layer's width, device and dtype."""
        super().__init__()
        place: Any = {"device": moe.up.device, "dtype": moe.weights.dtype}
        self.map = nn.Linear(moe.d_model, moe.num_experts, **place)

    def logits(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., N]
        return self.map(z)

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., N]
        return self.logits(z).float().softmax(-1)


class FactorMoE(MoE):
    """Experts whose sum is scaled by N / K under a rule that runs K of them; b2 is not scaled."""

    def __init__(self, ffn: FFN, num_experts: int):
        """See `MoE`."""
        super().__init__(ffn, num_experts)
        self.outputs = nn.Identity()  # each expert's, [..., N, d_out]: in training, for hooks

    def run(self, z: Tensor, backend: str) -> Tensor:
        if self.training:
            return self._each(z)
        return (super().run(z, backend) - self._bias) * self._scale + self._bias

    def _each(self, z: Tensor) -> Tensor:
        """The same by the output of every expert, which the labels need too."""
        router: Any = self.router
        mask, hidden = self.selection(router(z)), self.hidden(z).unbind(-2)
        each = [h @ down for h, down in zip(hidden, self.down, strict=True)]
        outputs = self.outputs(torch.stack(each, -2))
        total = torch.where(mask.unsqueeze(-1), outputs, 0).sum(-2)
        return total * self._scale + self._bias

    @property
    def _scale(self) -> float:
        rule, value = self.operating_point
        counts = look_up(RULES, rule, "selection rule").whole
        return self.num_experts / value if counts else 1.0

    @property
    def _bias(self) -> Tensor | float:
        return 0.0 if self.down_bias is None else self.down_bias


def add_linear_router(moe: MoE) -> LinearRouter:
    """Give a layer, in place, a fresh linear router; returns the router."""
    layer: Any = moe
    layer.router = LinearRouter(moe).train(moe.training)
    return layer.router


def rebuild(model: nn.Module, spec: ModelSpec, experts: int, active: int) -> nn.Module:
    """Experts and linear routers with fresh weights in place of the FFNs, at K = `active`."""

    def make(ffn: FFN, _index: int) -> MoE:
        moe = FactorMoE(ffn, experts)
        add_linear_router(moe)
        moe.operating_point = "top_k", active
        return moe

    return replace(model, FFN, make)
