"""Which neurons form an expert: balanced clustering of W1's rows (paper section 3.2)."""

import numpy as np
import torch
from k_means_constrained import KMeansConstrained
from torch import Tensor


def assign_neurons(up: Tensor, num_experts: int, method: str, seed: int) -> Tensor:
    """Which hidden neurons form each expert.

    Args:
        up: W1, [d_ff, d_model]; each row is scaled to unit L2 norm before it is clustered.
        num_experts: n; must divide d_ff.
        method: `kmeans` (balanced k-means, as the paper), or the ablations `random` (balanced) and
            `contiguous` (neighbouring rows).
        seed: fixes the clustering.

    Returns:
        Integers [num_experts, d_ff / num_experts], every neuron once; experts in the order of their
        smallest neuron, neurons ascending within each.

    Raises:
        ValueError: n does not divide d_ff.
    """
    d_ff = up.shape[0]
    if d_ff % num_experts:
        raise ValueError(f"{num_experts} experts do not divide {d_ff} hidden neurons")
    size = d_ff // num_experts
    if method == "kmeans":
        labels = _balanced_kmeans(up, num_experts, size, seed)
    else:
        labels = np.arange(d_ff) // size
        if method == "random":
            labels = np.random.default_rng(seed).permutation(labels)
    experts = np.argsort(labels, kind="stable").reshape(num_experts, size)
    return torch.from_numpy(experts[np.argsort(experts[:, 0])])


def _balanced_kmeans(up: Tensor, num_experts: int, size: int, seed: int) -> np.ndarray:
    rows = torch.nn.functional.normalize(up.detach().double().cpu(), dim=1).numpy()
    kmeans = KMeansConstrained(
        num_experts, size_min=size, size_max=size, n_init=3, random_state=seed, n_jobs=1
    )
    return kmeans.fit_predict(rows)
