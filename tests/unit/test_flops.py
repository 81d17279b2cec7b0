"""Laws of the cost model, against counts made independently of it."""

from fractions import Fraction

import pytest
import torch
from small import (
    SPEC,
    make_dense,
    make_ffn,
    make_inputs,
    make_routed,
    make_split,
    others_later,
    with_options,
)
from small_language import (
    EXPERTS,
    LENGTH,
    SIZES,
    TEXTS,
    TINY,
    VOCABULARY,
    WIDTH,
    make_language,
    make_routed_language,
    make_tokens,
    split_language,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d2dmoe.evaluation import count_executed
from d2dmoe.flops import count, mean_cost, model_cost
from d2dmoe.formulas import Transformer, layer_ratio
from d2dmoe.inputs import Inputs
from d2dmoe.kernels.cpu import grouped
from d2dmoe.moe import MoE, set_selection, split_ffn
from d2dmoe.router import Router
from d2dmoe.spec import ModelSpec

STEM = with_options(stem=[5, 6])
TOKENS = 1 + 2 * 2  # class token and patches
ROUTERS = 2 * TOKENS * 2 * 6 * (16 + 8)  # layers, tokens, 2 h (d_model + n)


def analytic_vit(spec: ModelSpec) -> tuple[int, int]:
    """(outside of the FFNs, FFNs) of a ViT in FLOPs, from its dimensions alone."""
    cfg = spec.options
    patches, d = (cfg["image_size"] // cfg["patch_size"]) ** 2, cfg["d_model"]
    tokens, channels, grid, embed = patches + 1, 3, cfg["image_size"], 0
    for out in cfg["stem"]:  # 3x3 convolutions of stride 2, then one of 1x1
        grid = (grid + 1) // 2
        embed += 2 * grid**2 * out * channels * 9
        channels = out
    kernel = 1 if cfg["stem"] else cfg["patch_size"] ** 2
    embed += 2 * patches * d * channels * kernel
    projections = 2 * tokens * d * 4 * d  # q, k, v and output
    products = 2 * 2 * tokens**2 * d  # queries with keys, weights with values
    head = 2 * d * cfg["num_classes"]
    ffns = cfg["layers"] * 2 * 2 * tokens * d * cfg["d_ff"]
    return embed + cfg["layers"] * (projections + products) + head, ffns


def analytic_language(name: str, tokens: int) -> tuple[int, int]:
    """The same of a language model. Causal attention counts the whole square of token pairs."""
    layers, d, d_ff = SIZES["layers"], SIZES["d_model"], SIZES["d_ff"]
    width = keys = d  # of queries, and of keys and of values
    maps = 2
    if name == "gemma":
        cfg, maps = TINY["gemma"], 3
        width, keys = cfg.heads * cfg.head_dim, cfg.key_value_heads * cfg.head_dim
    projections = 2 * tokens * d * (2 * width + 2 * keys)
    products = 2 * 2 * tokens**2 * width
    head = 2 * tokens * d * VOCABULARY
    if name == "bert":  # pooler and classifier see the first token only
        head = 2 * d * (d + len(TEXTS["classes"]))
    return layers * (projections + products) + head, layers * 2 * maps * tokens * d * d_ff


def images(count: int = 1) -> Inputs:
    return {"x": make_inputs(count)}


def texts(count: int = 1, length: int = LENGTH) -> Inputs:
    return {"input_ids": make_tokens(count, length)}


def routed(name: str) -> tuple[nn.Module, Inputs, int]:
    """A routed model, a sample for it, and the FLOPs of its routers."""
    if name == "vit":
        return make_routed(), images(), ROUTERS
    routers = SIZES["layers"] * LENGTH * 2 * WIDTH * (SIZES["d_model"] + EXPERTS)
    return make_routed_language(name), texts(), routers


@pytest.mark.parametrize("spec", [SPEC, STEM], ids=["patches", "stem"])
@pytest.mark.parametrize("make", [make_dense, make_split, make_routed])
def test_the_dense_cost_is_that_of_the_dimensions_at_every_stage(make, spec):
    cost = model_cost(make(spec), images())
    fixed, ffns = analytic_vit(spec)
    assert cost.fixed == fixed and cost.dense == fixed + ffns
    assert count(make_dense(spec), images()) == fixed + ffns


@pytest.mark.parametrize("name", TINY)
def test_the_dense_cost_of_language_models_is_that_of_the_dimensions_at_every_stage(name):
    fixed, ffns = analytic_language(name, 7)
    for model in (
        make_language(name),
        split_language(make_language(name)),
        make_routed_language(name),
    ):
        cost = model_cost(model, texts(length=7))
        assert cost.fixed == fixed and cost.dense == fixed + ffns and cost.tokens == 7
    assert count(make_language(name), texts(length=7)) == fixed + ffns


@pytest.mark.parametrize("name", TINY)
def test_the_cost_by_sizes_alone_is_the_counted_one(name):
    fixed, ffns = analytic_language(name, 7)
    sizes = {key: SIZES[key] for key in ("layers", "d_model", "d_ff")}
    if name == "gemma":
        sizes |= {"gated": True, "d_kv": 8}
    if name == "bert":  # pooler and classifier see the first token only
        sizes["outside"] = 2 * 16 * (16 + len(TEXTS["classes"]))
    else:
        sizes["classes"] = VOCABULARY
    model = Transformer(tokens=7, **sizes)
    assert (model.flops, model.ffns) == (fixed + ffns, ffns)
    assert model.ffn_share == ffns / (fixed + ffns)


@pytest.mark.parametrize("name", ["vit", *TINY])
def test_at_tau_0_the_cost_is_dense_plus_routers(name):
    model, sample, routers = routed(name)
    cost = model_cost(model, sample)
    set_selection(model, "dynamic_k", 0.0)
    with count_executed(model) as executed:
        model(**sample)
    everything = {name: e.total for name, e in executed.items()}
    assert list(everything.values()) == [cost.tokens * 8] * 2
    assert cost.total(everything) == cost.dense + routers
    assert cost.total(dict.fromkeys(everything, 0)) == cost.fixed + routers


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("name", others_later(TINY, ["bert"]))
def test_the_mean_cost_over_lengths_is_the_mean_of_their_costs(name, routed):
    model = (make_routed_language if routed else make_language)(name)
    lengths = [9, 4, 12, 7, 7, 5, 11]
    each = [model_cost(model, texts(length=n)) for n in lengths]
    cost = mean_cost(model, lambda n: texts(length=n), torch.tensor(lengths))
    assert cost.fixed == float(Fraction(sum(c.fixed for c in each), 7))
    assert cost.tokens == float(Fraction(sum(lengths), 7))
    assert cost.dense == pytest.approx(sum(c.dense for c in each) / 7, rel=1e-14)
    for executed in (0, 3.5):  # experts that a sample runs in each layer
        totals = [c.total(dict.fromkeys(c.layers, executed)) for c in each]
        total = cost.total(dict.fromkeys(cost.layers, executed))
        assert total == pytest.approx(sum(totals) / 7, rel=1e-14)


@pytest.mark.parametrize("name", TINY)
def test_the_mean_cost_of_samples_of_one_length_is_that_of_one_of_them(name):
    model, counted = make_language(name), []

    def sample(length: int) -> Inputs:
        counted.append(length)
        return texts(length=length)

    cost = mean_cost(model, sample, torch.full((6,), LENGTH))
    assert cost == model_cost(model, texts()) and counted == [LENGTH]


def test_the_cost_does_not_depend_on_the_operating_point_at_which_it_is_counted():
    model = make_routed()
    costs = []
    for tau in (0.0, 1.0):
        set_selection(model, "dynamic_k", tau)
        costs.append(model_cost(model, images()))
    assert costs[0] == costs[1]


def test_the_cost_falls_as_tau_rises():
    model, inputs = make_routed(), images()
    cost, totals = model_cost(model, inputs), []
    for tau in (0.0, 0.2, 0.5, 1.0):
        set_selection(model, "dynamic_k", tau)
        with count_executed(model) as executed:
            model(**inputs)
        totals.append(cost.total({name: e.total for name, e in executed.items()}))
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4
    assert totals[-1] > cost.fixed


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_the_formula_of_figure_10_is_what_torch_counts_for_the_sparse_layer(density):
    tokens, d_model, d_ff, n, width = 11, 12, 40, 10, 6
    ffn = make_ffn(d_model, d_ff, "relu")
    moe, router = (
        split_ffn(ffn, torch.arange(d_ff).view(n, -1)),
        Router(d_model, width, n, "regression"),
    )
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(tokens, d_model, generator=generator)
    mask = torch.rand(tokens, n, generator=generator) < density
    sparse, dense = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.no_grad():
        with sparse:
            router.logits(z)
            grouped(z, mask, moe.weights)
        with dense:
            ffn(z)
    k = mask.sum().item() / tokens
    counted = sparse.get_total_flops() / dense.get_total_flops()
    assert layer_ratio(d_model, d_ff, n, width, k) == pytest.approx(counted, rel=1e-12)


def test_the_cost_of_a_layer_agrees_with_the_formula_of_figure_10():
    model = make_routed()
    cost = model_cost(model, images())
    for layer in cost.layers.values():
        ratio = layer.total(TOKENS * 3) / layer.dense
        assert ratio == pytest.approx(layer_ratio(16, 32, 8, 6, k=3), rel=1e-12)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_the_cost_of_a_layer_is_what_torch_counts_for_the_sparse_layer(gated, density):
    tokens, d_model, d_ff, n, width = 11, 12, 40, 10, 6
    moe = split_ffn(make_ffn(d_model, d_ff, "relu", gated=gated), torch.arange(d_ff).view(n, -1))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(tokens, d_model, generator=generator)
    mask = torch.rand(tokens, n, generator=generator) < density
    moe.router = Router(d_model, width, n, "regression")
    cost = model_cost(nn.Sequential(moe), {"input": z[None]}).layers["0"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        moe.router(z)
        grouped(z, mask, moe.weights)
    assert cost.total(mask.sum().item()) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["vit", *TINY])
def test_a_sample_costs_the_same_in_every_batch(name):
    model = routed(name)[0]
    make = images if name == "vit" else texts
    assert count(model, make(4)) == 4 * count(model, make(1))


def test_counting_leaves_the_model_and_the_backends_as_they_were():
    model, inputs = make_routed(STEM), images()
    fast = torch.backends.mha.get_fastpath_enabled()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outputs = model(**inputs)
    model_cost(model, inputs)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(**inputs), outputs)
    assert not any(m._forward_hooks for m in model.modules())


def test_nested_sequences_of_layers_are_all_found():
    layers = nn.Sequential(make_ffn(6, 8, "relu"), nn.Sequential(make_ffn(6, 12, "gelu")))
    cost = model_cost(layers, {"input": torch.ones(1, 3, 8, 6)})
    assert [layer.tokens for layer in cost.layers.values()] == [3 * 8] * 2
    assert cost.fixed == 0 and cost.dense == 24 * 4 * 6 * (8 + 12)
    assert not any(isinstance(m, MoE) for m in layers.modules())
