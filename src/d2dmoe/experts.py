"""Which neurons form an expert: balanced clustering of W1's rows (paper section 3.2)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from d2dmoe.balanced_kmeans import balanced_kmeans


def assign_neurons(rows: Tensor, num_experts: int, method: str, seed: int) -> Tensor:
    """Which hidden neurons form each expert.

    Args:
        rows: [d_ff, d_model]: W1, or W_gate of a gated FFN; each row is scaled to unit L2 norm
            before clustering (a zero row stays zero).
        num_experts: n; must divide d_ff.
        method: `kmeans` (balanced k-means, as the paper), or the ablations `random` (balanced) and
            `contiguous` (neighbouring rows).
        seed: fixes the clustering.

    Returns:
        Integers [num_experts, d_ff / num_experts], every neuron once; experts in the order of their
        smallest neuron, neurons ascending within each.

    Raises:
        ValueError: n does not divide d_ff, or rows to be clustered are not finite.
    """
    d_ff = rows.shape[0]
    if d_ff % num_experts:
        raise ValueError(f"{num_experts} experts do not divide {d_ff} hidden neurons")
    if method == "kmeans":
        experts = balanced_kmeans(_unit(rows), num_experts, seed)
    else:
        labels = np.arange(d_ff) // (d_ff // num_experts)
        if method == "random":
            labels = np.random.default_rng(seed).permutation(labels)
        experts = np.argsort(labels, kind="stable").reshape(num_experts, -1)
    experts = np.sort(experts, axis=1)
    return torch.from_numpy(experts[np.argsort(experts[:, 0])])


def _unit(rows: Tensor) -> np.ndarray:
    if not rows.isfinite().all():
        raise ValueError("the rows to be clustered hold values that are not finite")
    return normalize(rows.detach().double().cpu(), dim=1).numpy()
