"""Laws of the layer that replaces an FFN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_dense, make_ffn, make_inputs, make_routed, make_split
from torch import nn

from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, set_selection, split_ffn, watch_inputs, watch_selections
from d2dmoe.router import Router
from d2dmoe.surgery import find

ACTIVATIONS = ["relu", "gelu"]
few = settings(max_examples=20, deadline=None, derandomize=True)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def tokens(seed: int, count: int, d_model: int) -> torch.Tensor:
    return torch.randn(count, d_model, generator=torch.Generator().manual_seed(seed))


def random_mask(seed: int, count: int, num_experts: int, density: float) -> torch.Tensor:
    return torch.rand(count, num_experts, generator=torch.Generator().manual_seed(seed)) < density


class Fixed(nn.Module):
    """A router that gives every expert of a mask the score 1, the others 0."""

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.mask = mask

    def forward(self, _z: torch.Tensor) -> torch.Tensor:
        return self.mask.float()


def masked_forward(moe: MoE, z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    moe.router = Fixed(mask)
    moe.selection.rule, moe.selection.value = "dynamic_k", 1.0
    try:
        return moe(z)
    finally:
        moe.router = None


def expert_outputs(ffn: FFN, experts: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Each expert's output from the FFN's own weights, one by one: [tokens, n, d_model]."""
    outputs = []
    for neurons in experts:
        hidden = ffn.activation(z @ ffn.up.weight[neurons].T + ffn.up.bias[neurons])
        outputs.append(hidden @ ffn.down.weight[:, neurons].T)
    return torch.stack(outputs, 1)


@few
@given(
    activation=st.sampled_from(ACTIVATIONS),
    method=st.sampled_from(["kmeans", "random", "contiguous"]),
    num_experts=st.integers(1, 6),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_all_experts_on_equals_the_dense_ffn(activation, method, num_experts, size, seed):
    ffn = make_ffn(7, num_experts * size, activation, seed)
    moe = split_ffn(ffn, assign_neurons(ffn.up.weight, num_experts, method, seed))
    z = tokens(seed, 9, 7)
    everything = torch.ones(9, num_experts, dtype=torch.bool)
    assert relative_error(moe(z), ffn(z)) < 1e-5
    assert relative_error(moe(z.view(3, 3, 7)).flatten(0, 1), ffn(z)) < 1e-5
    assert relative_error(moe.run_selected(z, everything), ffn(z)) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_permutation_of_the_hidden_neurons_changes_nothing(activation):
    ffn, z = make_ffn(7, 24, activation), tokens(0, 9, 7)
    experts = assign_neurons(ffn.up.weight, 6, "kmeans", 0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    permuted = make_ffn(7, 24, activation)
    with torch.no_grad():
        permuted.up.weight.copy_(ffn.up.weight[order])
        permuted.up.bias.copy_(ffn.up.bias[order])
        permuted.down.weight.copy_(ffn.down.weight[:, order])
    where = order.argsort()  # neuron i of the FFN is neuron where[i] of the permuted one
    one, other = split_ffn(ffn, experts), split_ffn(permuted, where[experts])
    mask = random_mask(2, 9, 6, 0.5)
    assert torch.equal(one(z), other(z))
    assert torch.equal(one.run_selected(z, mask), other.run_selected(z, mask))
    clustered = split_ffn(permuted, assign_neurons(permuted.up.weight, 6, "kmeans", 0))
    assert relative_error(clustered(z), ffn(z)) < 1e-5


@few
@given(
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 99),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    count=st.integers(1, 12),
)
def test_run_selected_equals_the_masked_sum_of_the_experts_outputs(
    activation, seed, density, count
):
    ffn = make_ffn(7, 20, activation, seed)
    experts = assign_neurons(ffn.up.weight, 5, "random", seed)
    moe, z = split_ffn(ffn, experts), tokens(seed, count, 7)
    mask = random_mask(seed, count, 5, density)
    mask[:, seed % 5] = False  # an expert that no token runs
    mask[0] = False  # a token that runs none
    outputs = expert_outputs(ffn, experts, z)
    expected = (outputs * mask.unsqueeze(-1)).sum(1) + ffn.down.bias
    assert relative_error(moe.run_selected(z, mask), expected) < 1e-5
    assert relative_error(masked_forward(moe, z, mask), expected) < 1e-5
    assert torch.equal(moe.run_selected(z, mask)[0], ffn.down.bias)


def test_no_expert_leaves_b2_alone_and_no_token_gives_no_output():
    ffn = make_ffn(7, 20, "gelu")
    moe, z = split_ffn(ffn, torch.arange(20).view(5, 4)), tokens(0, 3, 7)
    none = torch.zeros(3, 5, dtype=torch.bool)
    assert torch.equal(moe.run_selected(z, none), ffn.down.bias.expand(3, 7))
    assert torch.equal(masked_forward(moe, z, none), ffn.down.bias.expand(3, 7))
    assert moe.run_selected(z[:0], none[:0]).shape == (0, 7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_output_norms_are_the_norms_of_the_experts_outputs(activation):
    ffn, z = make_ffn(7, 20, activation), tokens(0, 9, 7)
    experts = assign_neurons(ffn.up.weight, 5, "random", 0)
    moe = split_ffn(ffn, experts)
    expected = expert_outputs(ffn, experts, z).norm(dim=-1)
    assert torch.allclose(moe.output_norms(z), expected, rtol=1e-4, atol=1e-6)
    in_sequence = moe.output_norms(z.view(3, 3, 7))
    assert torch.allclose(in_sequence.flatten(0, 1), expected, rtol=1e-4, atol=1e-6)


def test_hidden_activations_are_grouped_by_expert():
    ffn, z = make_ffn(7, 20, "relu"), tokens(0, 9, 7)
    experts = assign_neurons(ffn.up.weight, 5, "random", 0)
    hidden = ffn.activation(ffn.up(z))[:, experts]  # [tokens, n, e]
    assert torch.allclose(split_ffn(ffn, experts).hidden(z), hidden, atol=1e-6)


def test_the_router_decides_by_the_layers_own_input():
    ffn, z = make_ffn(7, 20, "relu"), tokens(0, 30, 7)
    moe = split_ffn(ffn, torch.arange(20).view(5, 4))
    torch.manual_seed(0)
    moe.router = Router(7, 6, 5, "regression")
    moe.selection.value = 0.5
    scores = moe.router(z)
    mask = scores >= 0.5 * scores.amax(-1, keepdim=True)
    assert 0 < mask.sum() < mask.numel()
    assert relative_error(moe(z), moe.run_selected(z, mask)) < 1e-5


def test_split_models_equal_dense_ones_and_hold_copies_of_the_weights():
    dense, split, inputs = make_dense(), make_split(), make_inputs()
    assert not find(split, FFN) and len(find(split, MoE)) == 2
    assert relative_error(split(inputs), dense(inputs)) < 1e-5
    ffn = next(iter(find(dense, FFN).values()))
    moe = split_ffn(ffn, torch.arange(32).view(8, 4))
    before = moe.up.detach().clone()
    with torch.no_grad():
        ffn.up.weight.zero_()
    assert torch.equal(moe.up, before)


def test_set_selection_reaches_every_layer_and_the_watched_masks_obey_it():
    model = make_routed()
    for rule, value, check in [
        ("top_k", 3, lambda mask: (mask.sum(-1) == 3).all()),
        ("dynamic_k", 0.0, lambda mask: mask.all()),
    ]:
        set_selection(model, rule, value)
        with watch_selections(model) as masks, watch_inputs(model) as inputs:
            model(make_inputs())
        assert list(masks) == list(inputs) == list(find(model, MoE))
        for name, mask in masks.items():
            assert mask.shape == (5, 5, 8) and mask.dtype == torch.bool and check(mask)
            assert inputs[name].shape == (5, 5, 16)
