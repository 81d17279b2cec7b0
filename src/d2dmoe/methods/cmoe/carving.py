"""Which neurons become shared and routed experts, and which speak for a routed one (CMoE).

A neuron fires for a token if it is among the few of the largest absolute value. The neurons that
fire most often form the shared experts. The others are clustered by their firing patterns, the
tokens that they fire for, into routed experts of one size; the neuron nearest to a cluster's mean
pattern represents it in the router.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from d2dmoe.balanced_kmeans import balanced_kmeans
from d2dmoe.ffn import FFN
from d2dmoe.methods.cmoe.router import SMALLEST, row_lengths


class Carving(NamedTuple):
    """The experts of one FFN."""

    neurons: Tensor  # of each expert, the shared ones first: integers [n, e]
    representatives: Tensor  # of each routed expert: integers [routed]


def firing(ffn: FFN, z: Tensor, count: int) -> Tensor:
    """Which neurons fire: the `count` of the largest absolute value that are not 0.

    Values are those of tokens and rows of weights of unit length, as in the authors' code, so that
    neither long tokens nor long rows fire more often; a bias is scaled as its row is.

    Args:
        ffn: with or without a gate.
        z: its inputs, [tokens, d_model].
        count: at most d_ff.

    Returns:
        Boolean [tokens, d_ff].
    """
    hidden = ffn.activation(_at_unit_length(ffn.activated, z))
    if ffn.gate is not None:
        hidden = hidden * _at_unit_length(ffn.up, z)
    values = hidden.abs()
    chosen = values.topk(count, dim=-1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, chosen, True) & (values > 0)


def _at_unit_length(layer: torch.nn.Linear, z: Tensor) -> Tensor:
    """A map's outputs as of unit tokens and rows: [tokens, d_model] -> [tokens, d_ff]."""
    lengths = z.norm(dim=-1, keepdim=True) * row_lengths(layer)
    return linear(z, layer.weight, layer.bias) / lengths.clamp(min=SMALLEST)


def carve_neurons(fires: Tensor, num_experts: int, shared: int, seed: int) -> Carving:
    """Part the neurons of one FFN.

    Squared distances of firing patterns count the tokens for which one fires and the other does
    not, so balanced k-means serves as it is; where the authors assign once to the neurons that fire
    most, it exchanges neurons until the clusters are compact.

    Args:
        fires: boolean [tokens, d_ff].
        num_experts: n, divides d_ff.
        shared: how many of them are shared, below n.
        seed: fixes the clustering.
    """
    size = fires.shape[1] // num_experts
    ranked = fires.sum(0).argsort(descending=True, stable=True)
    most, others = ranked[: shared * size], ranked[shared * size :].sort().values
    patterns = fires[:, others].T.float()  # [routed neurons, tokens]
    longest = patterns.sum(1).max().clamp(min=1).sqrt()  # the clustering takes norms of at most 1
    clusters = balanced_kmeans((patterns / longest).numpy(), num_experts - shared, seed)
    members = torch.from_numpy(clusters).sort(1).values
    members = members[members[:, 0].argsort()]
    nearest = _nearest_to_mean(patterns[members])
    routed = others[members]  # [routed, size]
    representatives = routed.gather(1, nearest.unsqueeze(1)).squeeze(1)
    return Carving(torch.cat([most.view(shared, size), routed]), representatives)


def _nearest_to_mean(patterns: Tensor) -> Tensor:
    """Of each cluster [clusters, size, tokens], the member nearest to its mean: [clusters]. Where
    patterns are binary, the sums of absolute and of squared differences rank alike."""
    means = patterns.mean(1, keepdim=True)
    return (patterns - means).square().sum(-1).argmin(1)
