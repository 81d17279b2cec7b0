"""Laws of the cost model, against counts made independently of it."""

import pytest
import torch
from small import SPEC, make_dense, make_ffn, make_images, make_inputs, make_routed, make_split
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d2dmoe.checkpoint import ModelSpec
from d2dmoe.evaluate import count_executed
from d2dmoe.flops import count, layer_ratio, model_cost
from d2dmoe.moe import MoE, set_selection, split_ffn
from d2dmoe.router import Router

STEM = SPEC.with_(model=SPEC.model.model_copy(update={"stem": [5, 6]}).model_dump())
TOKENS = 1 + 2 * 2  # class token and patches
ROUTERS = 2 * TOKENS * 2 * 6 * (16 + 8)  # layers, tokens, 2 h (d_model + n)


def analytic_vit(spec: ModelSpec) -> tuple[int, int]:
    """(outside of the FFNs, FFNs) of a ViT in FLOPs, from its dimensions alone."""
    cfg, size = spec.model, spec.image_size
    patches, d = (size // cfg.patch_size) ** 2, cfg.d_model
    tokens, channels, grid, embed = patches + 1, 3, size, 0
    for out in cfg.stem:  # 3x3 convolutions of stride 2, then one of 1x1
        grid = (grid + 1) // 2
        embed += 2 * grid**2 * out * channels * 9
        channels = out
    kernel = 1 if cfg.stem else cfg.patch_size**2
    embed += 2 * patches * d * channels * kernel
    projections = 2 * tokens * d * 4 * d  # q, k, v and output
    products = 2 * 2 * tokens**2 * d  # queries with keys, weights with values
    head = 2 * d * len(spec.classes)
    ffns = cfg.layers * 2 * 2 * tokens * d * cfg.d_ff
    return embed + cfg.layers * (projections + products) + head, ffns


@pytest.mark.parametrize("spec", [SPEC, STEM], ids=["patches", "stem"])
@pytest.mark.parametrize("make", [make_dense, make_split, make_routed])
def test_the_dense_cost_is_that_of_the_dimensions_at_every_stage(make, spec):
    cost = model_cost(make(spec), make_inputs(1))
    fixed, ffns = analytic_vit(spec)
    assert cost.fixed == fixed and cost.dense == fixed + ffns
    assert count(make_dense(spec), make_inputs(1)) == fixed + ffns


def test_at_tau_0_the_cost_is_dense_plus_routers():
    model = make_routed()
    cost = model_cost(model, make_inputs(1))
    set_selection(model, "dynamic_k", 0.0)
    with count_executed(model) as executed:
        model(make_inputs(1))
    everything = {name: e.total for name, e in executed.items()}
    assert list(everything.values()) == [TOKENS * 8] * 2
    assert cost.total(everything) == cost.dense + ROUTERS
    assert cost.total(dict.fromkeys(everything, 0)) == cost.fixed + ROUTERS


def test_the_cost_does_not_depend_on_the_operating_point_at_which_it_is_counted():
    model = make_routed()
    costs = []
    for tau in (0.0, 1.0):
        set_selection(model, "dynamic_k", tau)
        costs.append(model_cost(model, make_inputs(1)))
    assert costs[0] == costs[1]


def test_the_cost_falls_as_tau_rises():
    model, inputs = make_routed(), make_inputs(1)
    cost, totals = model_cost(model, inputs), []
    for tau in (0.0, 0.2, 0.5, 1.0):
        set_selection(model, "dynamic_k", tau)
        with count_executed(model) as executed:
            model(inputs)
        totals.append(cost.total({name: e.total for name, e in executed.items()}))
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4
    assert totals[-1] > cost.fixed


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_the_formula_of_figure_10_is_what_torch_counts_for_the_sparse_layer(density):
    tokens, d_model, d_ff, n, width = 11, 12, 40, 10, 6
    ffn = make_ffn(d_model, d_ff, "relu")
    moe, router = split_ffn(ffn, torch.arange(d_ff).view(n, -1)), Router(d_model, width, n, "x")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(tokens, d_model, generator=generator)
    mask = torch.rand(tokens, n, generator=generator) < density
    sparse, dense = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.no_grad():
        with sparse:
            router.logits(z)
            moe.run_selected(z, mask)
        with dense:
            ffn(z)
    k = mask.sum().item() / tokens
    counted = sparse.get_total_flops() / dense.get_total_flops()
    assert layer_ratio(d_model, d_ff, n, width, k) == pytest.approx(counted, rel=1e-12)


def test_the_cost_of_a_layer_agrees_with_the_formula_of_figure_10():
    model = make_routed()
    cost = model_cost(model, make_inputs(1))
    for layer in cost.layers.values():
        ratio = layer.total(TOKENS * 3) / layer.dense
        assert ratio == pytest.approx(layer_ratio(16, 32, 8, 6, k=3), rel=1e-12)


def test_a_sample_costs_the_same_in_every_batch():
    model, inputs = make_routed(), make_inputs(4)
    assert count(model, inputs) == 4 * count(model, inputs[:1])


def test_counting_leaves_the_model_and_the_backends_as_they_were():
    model, inputs = make_routed(STEM), make_inputs(1)
    fast = torch.backends.mha.get_fastpath_enabled()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outputs = model(inputs)
    model_cost(model, inputs)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(inputs), outputs)
    assert not any(m._forward_hooks for m in model.modules())


def test_nested_sequences_of_layers_are_all_found():
    layers = nn.Sequential(make_ffn(6, 8, "relu"), nn.Sequential(make_ffn(6, 12, "gelu")))
    cost = model_cost(layers, make_images(1).batch(torch.tensor([0])).float()[..., :6])
    assert [layer.tokens for layer in cost.layers.values()] == [3 * 8] * 2
    assert cost.fixed == 0 and cost.dense == 24 * 4 * 6 * (8 + 12)
    assert not any(isinstance(m, MoE) for m in layers.modules())
