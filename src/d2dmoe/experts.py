"""Which neurons form an expert: balanced clustering of W1's rows (paper section 3.2)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from d2dmoe.balanced_kmeans import balanced_kmeans
from d2dmoe.errors import ModelError, whole
from d2dmoe.lookup import look_up


def assign_neurons(rows: Tensor, num_experts: int, method: str, seed: int) -> Tensor:
    """Which hidden neurons form each expert.

    Args:
        rows: [d_ff, d_model]: W1, or W_gate of a gated FFN; each row is scaled to unit L2 norm
            before clustering (a zero row stays zero).
        num_experts: n; must divide d_ff.
        method: a key of `METHODS`: `kmeans` (balanced k-means, as the paper), or the ablations
            `random` (balanced) and `contiguous` (neighbouring rows).
        seed: fixes the clustering.

    Returns:
        Integers [num_experts, d_ff / num_experts], every neuron once; experts in the order of their
        smallest neuron, neurons ascending within each.

    Raises:
        UnknownName: there is no such method.
        ModelError: n does not divide d_ff, the seed is negative, or rows to be clustered are not
            finite.
    """
    split = look_up(METHODS, method, "split method")
    if rows.ndim != 2:
        raise ModelError(f"rows must be [d_ff, d_model], these are {list(rows.shape)}")
    num_experts, seed = whole(num_experts, "num_experts"), whole(seed, "seed", least=0)
    if len(rows) % num_experts:
        raise ModelError(f"{num_experts} experts do not divide {len(rows)} hidden neurons")
    neurons = np.sort(split(rows, num_experts, seed), axis=1)
    return torch.from_numpy(neurons[np.argsort(neurons[:, 0])])


def _kmeans(rows: Tensor, num_experts: int, seed: int) -> np.ndarray:
    if not rows.detach().isfinite().all():
        raise ModelError("the rows to be clustered hold values that are not finite")
    unit = normalize(rows.detach().double().cpu(), dim=1).numpy()
    return balanced_kmeans(unit, num_experts, seed)


def _random(rows: Tensor, num_experts: int, seed: int) -> np.ndarray:
    d_ff = rows.shape[0]
    labels = np.arange(d_ff) // (d_ff // num_experts)
    labels = np.random.default_rng(seed).permutation(labels)
    return np.argsort(labels, kind="stable").reshape(num_experts, -1)


def _contiguous(rows: Tensor, num_experts: int, seed: int) -> np.ndarray:
    return np.arange(rows.shape[0]).reshape(num_experts, -1)


# (rows [d_ff, d_model], n, seed) -> integers [n, d_ff / n]
METHODS = {"kmeans": _kmeans, "random": _random, "contiguous": _contiguous}
