"""The dynamic-k mixture of experts that replaces an FFN (paper section 3).

The output is the unweighted sum of the selected experts, plus b2, which lies outside the experts.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from d2dmoe.ffn import ACTIVATIONS, FFN
from d2dmoe.router import Router
from d2dmoe.selection import Selection
from d2dmoe.surgery import find, watch


class MoE(nn.Module):
    """n experts of e neurons each; without a router every expert runs.

    Parameters: `up` and `down` [n, e, d_model], `up_bias` [n, e], `down_bias` [d_model].
    """

    def __init__(self, d_model: int, num_experts: int, expert_size: int, activation: str):
        super().__init__()
        self.d_model, self.num_experts, self.expert_size = d_model, num_experts, expert_size
        self.up = nn.Parameter(torch.empty(num_experts, expert_size, d_model))
        self.up_bias = nn.Parameter(torch.empty(num_experts, expert_size))
        self.down = nn.Parameter(torch.empty(num_experts, expert_size, d_model))
        self.down_bias = nn.Parameter(torch.empty(d_model))
        self.activation_name = activation
        self.activation = ACTIVATIONS[activation]()
        self.router: Router | None = None
        self.selection = Selection()

    @classmethod
    def like(cls, ffn: FFN, num_experts: int) -> "MoE":
        """A layer of the FFN's shape, activation and device, its weights uninitialised."""
        moe = cls(ffn.d_model, num_experts, ffn.d_ff // num_experts, ffn.activation_name)
        return moe.to(ffn.up.weight.device)

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d_model]
        """Computes every expert and masks those that were not selected: exact, not faster."""
        hidden = self.hidden(z)  # [..., n, e]
        if self.router is not None:
            hidden = hidden * self.selection(self.router(z)).unsqueeze(-1)
        return linear(hidden.flatten(-2), self.down.flatten(0, 1).T, self.down_bias)

    def hidden(self, z: Tensor) -> Tensor:
        """Hidden activations by expert: [..., d_model] -> [..., n, e]."""
        pre = linear(z, self.up.flatten(0, 1), self.up_bias.flatten())
        return self.activation(pre).unflatten(-1, (self.num_experts, self.expert_size))

    def run_selected(self, z: Tensor, mask: Tensor) -> Tensor:
        """The layer's output, computing the selected experts only.

        Args:
            z: tokens, [tokens, d_model].
            mask: which experts each token runs, boolean [tokens, num_experts].

        Returns:
            [tokens, d_model], equal to the masked sum over all experts.
        """
        out = self.down_bias.expand_as(z).clone()
        for expert in range(self.num_experts):
            tokens = mask[:, expert].nonzero().squeeze(-1)
            hidden = self.activation(linear(z[tokens], self.up[expert], self.up_bias[expert]))
            out.index_add_(0, tokens, hidden @ self.down[expert])
        return out

    def output_norms(self, z: Tensor) -> Tensor:
        """‖E_i(z)‖₂ of every expert, b2 left out: [..., d_model] -> [..., n].

        With G_i = W2_i W2_iᵀ the squared norm is h_iᵀ G_i h_i, which needs no [..., n, d_model].
        """
        hidden = self.hidden(z)
        gram = self.down @ self.down.transpose(1, 2)  # [n, e, e]
        squared = (torch.einsum("...ne,nef->...nf", hidden, gram) * hidden).sum(-1)
        return squared.clamp(min=0).sqrt()


def split_ffn(ffn: FFN, experts: Tensor) -> MoE:
    """The FFN as experts; with every expert on it equals the FFN up to the order of summation.

    Args:
        ffn: the trained FFN.
        experts: neurons of each expert, [num_experts, expert_size], from `experts.assign_neurons`.
    """
    moe = MoE.like(ffn, experts.shape[0])
    experts = experts.to(ffn.up.weight.device)
    with torch.no_grad():
        moe.up.copy_(ffn.up.weight[experts])  # [n, e, d_model]
        moe.up_bias.copy_(ffn.up.bias[experts])  # [n, e]
        moe.down.copy_(ffn.down.weight.T[experts])  # [n, e, d_model]
        moe.down_bias.copy_(ffn.down.bias)  # [d_model]
    return moe


def set_selection(model: nn.Module, rule: str, value: float) -> None:
    """Give every MoE layer of the model the same rule and operating point."""
    for moe in find(model, MoE).values():
        moe.selection.rule, moe.selection.value = rule, value


def watch_inputs(model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    """Record the input z [..., d_model] of every MoE layer, by the layer's name."""
    return watch(find(model, MoE), lambda _module, z, _output: z)


def watch_selections(model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    """Record the selected experts, boolean [..., n], of every MoE layer, by the layer's name."""
    selections = {name: moe.selection for name, moe in find(model, MoE).items()}
    return watch(selections, lambda _module, _scores, mask: mask)
