"""The layer on the CPU: expert by expert, in plain torch; faster than dense where few run."""

import torch
from torch import Tensor

from d2dmoe.weights import ExpertWeights, hidden_neurons


def grouped(z: Tensor, mask: Tensor, weights: ExpertWeights) -> Tensor:
    """Computes the selected experts only, one after the other, each for all of its tokens.

    Args:
        z: [tokens, d_model].
        mask: boolean [tokens, n].
        weights: of z's dtype.

    Returns:
        [tokens, d_out]; the same bytes on every call. Those of 16-bit floats are summed in fp32.
    """
    precise = torch.promote_types(z.dtype, torch.float32)
    out, weights = outside(z, weights).to(precise), weights.dequantized()._replace(down_bias=None)
    by_expert = mask.T.contiguous()
    for expert in by_expert.any(1).nonzero().flatten().tolist():
        tokens = by_expert[expert].nonzero().squeeze(-1)
        one = (x[expert, None] if isinstance(x, Tensor) else x for x in weights)
        hidden = hidden_neurons(z[tokens], ExpertWeights._make(one)).squeeze(-2)  # [tokens, e]
        out.index_add_(0, tokens, (hidden @ weights.down[expert]).to(precise))
    return out.to(z.dtype)


def outside(z: Tensor, weights: ExpertWeights) -> Tensor:
    """What each token gets without any expert, in memory of its own: [tokens, d_out]."""
    if weights.down_bias is None:
        return z.new_zeros(len(z), weights.d_out)
    return weights.down_bias.to(z.dtype).repeat(len(z), 1)
