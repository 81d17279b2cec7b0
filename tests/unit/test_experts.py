"""Laws of the split of neurons into experts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from d2dmoe.experts import assign_neurons

METHODS = ["kmeans", "random", "contiguous"]
few = settings(max_examples=10, deadline=None, derandomize=True)


def weights(d_ff: int, d_model: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(d_ff, d_model, generator=torch.Generator().manual_seed(seed))


def inertia(up: torch.Tensor, experts: torch.Tensor) -> float:
    rows = normalize(up.double(), dim=1)[experts]  # [n, e, d_model]
    return float((rows - rows.mean(1, keepdim=True)).square().sum())


@few
@given(
    method=st.sampled_from(METHODS),
    num_experts=st.integers(1, 8),
    size=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_every_neuron_is_in_exactly_one_of_equally_large_experts(method, num_experts, size, seed):
    up = weights(num_experts * size, seed=seed)
    experts = assign_neurons(up, num_experts, method, seed)
    assert experts.shape == (num_experts, size)
    assert torch.equal(experts.flatten().sort().values, torch.arange(num_experts * size))


@pytest.mark.parametrize("method", METHODS)
def test_experts_and_their_neurons_are_in_ascending_order(method):
    experts = assign_neurons(weights(24), 6, method, seed=3)
    assert torch.equal(experts, experts.sort(dim=1).values)
    assert torch.equal(experts[:, 0], experts[:, 0].sort().values)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_split_whatever_was_drawn_before(method):
    up = weights(32)
    first = assign_neurons(up, 8, method, seed=5)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(first, assign_neurons(up, 8, method, seed=5))


def test_another_seed_gives_another_random_split():
    up = weights(32)
    assert not torch.equal(*(assign_neurons(up, 8, "random", seed) for seed in (0, 1)))


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_clusters_are_tighter_than_random_ones(seed):
    up = weights(48, seed=seed)
    kmeans, random = (assign_neurons(up, 8, method, seed) for method in ("kmeans", "random"))
    assert inertia(up, kmeans) < inertia(up, random)


def test_kmeans_finds_planted_directions_whatever_their_length():
    directions = torch.eye(4)
    lengths = 10.0 ** torch.arange(-1, 2)  # the same direction at three lengths
    up = (lengths[:, None, None] * directions).reshape(12, 4)  # neuron i has direction i % 4
    up += 0.001 * weights(12, 4)
    experts = assign_neurons(up, 4, "kmeans", seed=0)
    assert experts.tolist() == [[i, i + 4, i + 8] for i in range(4)]


def test_contiguous_experts_are_neighbouring_rows():
    assert assign_neurons(weights(6), 3, "contiguous", 0).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_an_impossible_number_of_experts_is_refused():
    with pytest.raises(ValueError, match="5 experts do not divide 12"):
        assign_neurons(weights(12), 5, "kmeans", 0)
