"""The layer in plain torch: every expert, masked; or, faster where few run, expert by expert."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from d2dmoe.kernels.experts import Experts, RouterWeights, activate


def dense(z: Tensor, mask: Tensor | None, experts: Experts) -> Tensor:
    """Computes every expert and masks those that were not selected: exact, not faster.

    Args:
        z: [..., d_model].
        mask: boolean [..., n]; None: every expert runs.

    Returns:
        [..., d_out]; gradients reach z and the experts.
    """
    experts = experts.dequantized()
    hidden = hidden_neurons(z, experts)  # [..., n, e]
    if mask is not None:
        hidden = hidden * mask.unsqueeze(-1)
    return linear(hidden.flatten(-2), experts.down.flatten(0, 1).T, experts.down_bias)


def hidden_neurons(z: Tensor, experts: Experts) -> Tensor:
    """What the experts' down maps multiply: [..., d_model] -> [..., n, e]."""
    n, e = experts.num_experts, experts.expert_size
    experts = experts.dequantized()

    def neurons(weight: Tensor, bias: Tensor | None) -> Tensor:
        out = linear(z, weight.flatten(0, 1), None if bias is None else bias.flatten())
        return out.unflatten(-1, (n, e))

    return _activated(neurons, experts)


def grouped(z: Tensor, mask: Tensor, experts: Experts) -> Tensor:
    """Computes the selected experts only, one after the other, each for all of its tokens.

    Args:
        z: [tokens, d_model].
        mask: boolean [tokens, n].

    Returns:
        [tokens, d_out]; the same bytes on every call.
    """
    out, inside = outside(z, experts), experts.dequantized()._replace(down_bias=None)
    by_expert = mask.T.contiguous()
    for expert in by_expert.any(1).nonzero().flatten().tolist():
        tokens = by_expert[expert].nonzero().squeeze(-1)
        one = Experts(*(x[expert] if isinstance(x, Tensor) else x for x in inside))
        chosen = z[tokens]
        hidden = _activated(lambda w, b, chosen=chosen: linear(chosen, w, b), one)
        out.index_add_(0, tokens, hidden @ one.down)
    return out


def _activated(neurons, experts: Experts) -> Tensor:
    """Hidden neurons, where `neurons(weight, bias)` are those of one of the maps."""
    hidden = neurons(experts.up, experts.up_bias)
    if experts.gate is None:
        return activate(hidden, experts.activation)
    return activate(neurons(experts.gate, experts.gate_bias), experts.activation) * hidden


def outside(z: Tensor, experts: Experts) -> Tensor:
    """What each token gets without any expert, in memory of its own: [tokens, d_out]."""
    if experts.down_bias is None:
        return z.new_zeros(len(z), experts.d_out)
    return experts.down_bias.to(z.dtype).repeat(len(z), 1)


def scores(z: Tensor, router: RouterWeights) -> Tensor:
    """A router's scores, not negative: [..., d_model] -> [..., n]."""
    hidden = torch.relu(linear(z, router.up, router.up_bias))
    logits = linear(hidden, router.down, router.down_bias)
    return logits.abs() if router.kind == "regression" else logits.sigmoid()
