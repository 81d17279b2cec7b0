"""Laws of the split of neurons into experts."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from k_means_constrained import KMeansConstrained
from small import others_later
from torch.nn.functional import normalize

from d2dmoe.balanced_kmeans import SCALE, Partition, integer_gram
from d2dmoe.errors import UnknownName
from d2dmoe.experts import METHODS, assign_neurons

few = settings(max_examples=10, deadline=None, derandomize=True)
several = settings(max_examples=40, deadline=None, derandomize=True)


def weights(d_ff: int, d_model: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(d_ff, d_model, generator=torch.Generator().manual_seed(seed))


def planted(experts: int, size: int, d_model: int, noise: float, seed: int = 0) -> torch.Tensor:
    """Rows around one direction per expert, [experts * size, d_model]; row i has i % experts."""
    rows = weights(experts, d_model, seed).repeat(size, 1)
    return rows + noise * weights(experts * size, d_model, seed + 1)


def mixture(d_ff: int, d_model: int, components: int) -> torch.Tensor:
    """Rows around directions that share them unequally."""
    generator = torch.Generator().manual_seed(1)
    component = (components * torch.rand(d_ff, generator=generator) ** 2).long()
    return weights(components, d_model)[component] + 0.7 * weights(d_ff, d_model, seed=2)


def low_rank(d_ff: int, d_model: int, rank: int) -> torch.Tensor:
    return weights(d_ff, rank) @ weights(rank, d_model, seed=1) + 0.3 * weights(d_ff, d_model, 2)


def inertia(rows: torch.Tensor, experts: torch.Tensor) -> float:
    """Sum of squared distances of the unit rows to the means of their experts."""
    rows = normalize(rows.double(), dim=1)[experts]  # [n, e, d_model]
    return float((rows - rows.mean(1, keepdim=True)).square().sum())


def exchanged(experts: torch.Tensor, x: int, y: int) -> torch.Tensor:
    """The experts with neurons x and y in each other's place."""
    return torch.where(experts == x, y, torch.where(experts == y, x, experts))


@few
@given(
    method=st.sampled_from(list(METHODS)),
    num_experts=st.integers(1, 8),
    size=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_every_neuron_is_in_exactly_one_of_equally_large_experts(method, num_experts, size, seed):
    rows = weights(num_experts * size, seed=seed)
    experts = assign_neurons(rows, num_experts, method, seed)
    assert experts.shape == (num_experts, size)
    assert torch.equal(experts.flatten().sort().values, torch.arange(num_experts * size))


@several
@given(
    num_experts=st.integers(1, 9),
    size=st.integers(1, 9),
    d_model=st.integers(1, 5),
    distinct=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_kmeans_takes_duplicate_and_zero_rows(num_experts, size, d_model, distinct, seed):
    d_ff = num_experts * size
    rows = weights(d_ff, d_model, seed) * (torch.arange(d_ff) < distinct)[:, None]
    rows = rows[torch.randint(d_ff, (d_ff,), generator=torch.Generator().manual_seed(seed))]
    experts = assign_neurons(rows, num_experts, "kmeans", seed)
    assert experts.shape == (num_experts, size)
    assert torch.equal(experts.flatten().sort().values, torch.arange(d_ff))


@pytest.mark.parametrize("method", METHODS)
def test_experts_and_their_neurons_are_in_ascending_order(method):
    experts = assign_neurons(weights(24), 6, method, seed=3)
    assert torch.equal(experts, experts.sort(dim=1).values)
    assert torch.equal(experts[:, 0], experts[:, 0].sort().values)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_split_whatever_was_drawn_before(method):
    rows = weights(32)
    first = assign_neurons(rows, 8, method, seed=5)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(first, assign_neurons(rows, 8, method, seed=5))


def test_another_seed_gives_another_random_split():
    rows = weights(32)
    assert not torch.equal(*(assign_neurons(rows, 8, "random", seed) for seed in (0, 1)))


@pytest.mark.parametrize("d_model", [1, 7, 2048])
def test_inner_products_are_exact_so_that_no_order_of_summation_matters(d_model):
    rows = normalize(weights(20, d_model).double(), dim=1).numpy()
    rows[0] = d_model**-0.5  # every entry positive: the largest partial sums
    integers = np.rint(rows * SCALE).astype(np.int64)
    assert np.array_equal(integer_gram(rows), integers @ integers.T)


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_clusters_are_tighter_than_random_ones(seed):
    rows = weights(48, seed=seed)
    kmeans, random = (assign_neurons(rows, 8, method, seed) for method in ("kmeans", "random"))
    assert inertia(rows, kmeans) < inertia(rows, random)


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("rows", "num_experts"),
    [
        (weights(256, 64), 32),
        (weights(512, 96), 8),
        (mixture(512, 64, components=48), 64),
        (mixture(768, 64, components=24), 24),
        (low_rank(512, 64, rank=8), 64),
        (low_rank(512, 64, rank=8), 8),
    ],
    ids=["random", "random, large", "mixture", "mixture, large", "low rank", "low rank, large"],
)
def test_kmeans_is_as_tight_as_lloyds_iteration_with_optimal_assignments(rows, num_experts):
    size = len(rows) // num_experts
    lloyd = KMeansConstrained(num_experts, size_min=size, size_max=size, n_init=3, random_state=0)
    labels = torch.from_numpy(lloyd.fit_predict(normalize(rows.double(), dim=1).numpy()))
    reference = labels.argsort(stable=True).view(num_experts, size)
    found = assign_neurons(rows, num_experts, "kmeans", seed=0)
    assert inertia(rows, found) <= 1.01 * inertia(rows, reference)


@pytest.mark.parametrize("seed", range(3))
def test_no_exchange_of_two_neurons_makes_kmeans_clusters_tighter(seed):
    rows = weights(24, seed=seed)
    experts = assign_neurons(rows, 6, "kmeans", seed)
    others = (exchanged(experts, x, y) for x, y in combinations(range(24), 2))
    rounding = 1e-3
    assert min(inertia(rows, other) for other in others) > inertia(rows, experts) - rounding


@several
@given(
    num_experts=st.integers(2, 6),
    size=st.integers(1, 6),
    seed=st.integers(0, 99),
    exchanges=st.lists(st.tuples(st.integers(0, 35), st.integers(0, 35)), max_size=9),
)
def test_gains_tell_how_much_an_exchange_lowers_the_inertia(num_experts, size, seed, exchanges):
    d_ff = num_experts * size
    rows = weights(d_ff, seed=seed)
    gram = integer_gram(normalize(rows.double(), dim=1).numpy())
    partition = Partition(gram, np.arange(d_ff).reshape(num_experts, size))
    for x, y in ((x % d_ff, y % d_ff) for x, y in exchanges):
        before = torch.from_numpy(partition.members.copy())
        gain = partition.gains(x)[y] / SCALE**2
        if partition.labels[x] == partition.labels[y]:
            assert gain < 1e-4  # an exchange within an expert is none
            continue
        partition.exchange(x, y)
        after = torch.from_numpy(partition.members)
        assert torch.equal(after.sort(1).values, exchanged(before, x, y).sort(1).values)
        lowered = inertia(rows, before) - inertia(rows, after)
        assert 4 * gain / size == pytest.approx(lowered, abs=2e-3)


def test_kmeans_finds_planted_directions_whatever_their_length():
    directions = torch.eye(4)
    lengths = 10.0 ** torch.arange(-1, 2)  # the same direction at three lengths
    rows = (lengths[:, None, None] * directions).reshape(12, 4)  # neuron i has direction i % 4
    rows += 0.001 * weights(12, 4)
    experts = assign_neurons(rows, 4, "kmeans", seed=0)
    assert experts.tolist() == [[i, i + 4, i + 8] for i in range(4)]


@pytest.mark.parametrize(("num_experts", "size"), [(2, 40), (16, 8), (40, 4), (60, 2)])
@pytest.mark.parametrize("seed", others_later(range(3), [0]))
def test_kmeans_finds_planted_clusters_in_any_basis_and_order(num_experts, size, seed):
    rows = planted(num_experts, size, d_model=32, noise=0.2, seed=seed)
    basis = torch.linalg.qr(weights(32, 32, seed)).Q
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    unchanged = torch.arange(len(rows))
    for view, neurons in ((rows, unchanged), (rows @ basis, unchanged), (rows[order], order)):
        clusters = neurons[assign_neurons(view, num_experts, "kmeans", seed)] % num_experts
        assert torch.equal(clusters, clusters[:, :1].expand_as(clusters))


def test_kmeans_sees_neither_the_length_of_rows_nor_the_signs_of_columns():
    rows = weights(48, 16)
    generator = torch.Generator().manual_seed(1)
    lengths = 2.0 ** torch.randint(-9, 9, (48, 1), generator=generator)  # exact in binary
    signs = 1 - 2 * torch.randint(2, (16,), generator=generator)
    experts = assign_neurons(rows, 12, "kmeans", seed=0)
    assert torch.equal(experts, assign_neurons(rows * lengths * signs, 12, "kmeans", seed=0))


def test_single_neurons_and_a_single_expert_need_no_clustering():
    assert assign_neurons(weights(6), 6, "kmeans", 0).tolist() == [[i] for i in range(6)]
    assert assign_neurons(weights(6), 1, "kmeans", 0).tolist() == [list(range(6))]


def test_contiguous_experts_are_neighbouring_rows():
    assert assign_neurons(weights(6), 3, "contiguous", 0).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_an_impossible_number_of_experts_is_refused():
    with pytest.raises(ValueError, match="5 experts do not divide 12"):
        assign_neurons(weights(12), 5, "kmeans", 0)


def test_an_unknown_method_is_refused_and_the_allowed_ones_listed():
    with pytest.raises(UnknownName, match="'spectral'; allowed: kmeans, random, contiguous"):
        assign_neurons(weights(12), 4, "spectral", 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    rows = weights(12)
    rows[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        assign_neurons(rows, 4, "kmeans", 0)
