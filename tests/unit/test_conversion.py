"""Conversion in memory: what is kept of a model, and what is refused before anything is changed."""

import copy

import pytest
import torch
from small import make_dense, make_ffn, make_inputs, make_routed, make_split
from small_language import ABOUT_OF, TINY
from torch import nn

from d2dmoe.attention import Projection, projection_mlps, replace_projections
from d2dmoe.backend import Backend
from d2dmoe.conversion import add_routers, rebuild_experts, to_moe
from d2dmoe.errors import ModelError, UnknownName, UserError
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN, set_activation
from d2dmoe.layers import describe, rebuild
from d2dmoe.models.build import create_model, separate_projections
from d2dmoe.moe import MoE, set_selection, split_ffn
from d2dmoe.sparsity import penalty
from d2dmoe.surgery import find

NEURONS = torch.arange(20).view(5, 4)


def modes(model: nn.Module) -> set[bool]:
    return {module.training for module in model.modules()}


# One mode


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_what_is_put_into_a_model_is_in_its_mode(name, training):
    cfg = TINY[name].model_copy(update={"dropout": 0.1})
    options, model = create_model(cfg, ABOUT_OF[name])
    assert len(modes(model)) == 1  # of one made by transformers, and of the FFNs in it
    model.train(training)
    ffns = find(model, FFN).values()
    steps = [
        lambda: separate_projections(name, model),
        lambda: replace_projections(model, projection_mlps(model, {"o": 8})),
        lambda: to_moe(model, [torch.arange(f.d_ff).view(-1, 8) for f in ffns]),
        lambda: add_routers(model, "regression", 4),
    ]
    for step in steps:
        step()
        ffns = find(model, FFN).values()
        assert modes(model) == {training}


@pytest.mark.parametrize("training", [True, False])
def test_rebuilt_modules_are_in_the_mode_of_those_they_replace(training):
    described = describe(make_routed())
    assert modes(rebuild(make_dense().train(training), described)) == {training}
    model = rebuild_experts(make_dense().train(training), None, {"ffn": 4})
    assert modes(model) == {training}


def test_part_of_a_model_may_be_in_another_mode():
    model = nn.Sequential(make_ffn(7, 20, "relu").train(), make_ffn(7, 20, "relu").eval())
    assert [moe.training for moe in to_moe(model, [NEURONS, NEURONS])] == [True, False]


# What is frozen stays so


@pytest.mark.parametrize("gated", [False, True])
def test_frozen_weights_stay_frozen_one_by_one_and_routers_train(gated):
    ffn = make_ffn(7, 20, "relu", gated=gated)
    names = [name for name, _ in ffn.named_parameters()]
    for frozen in (set(), set(names), {names[0]}, set(names[1:])):
        for name, parameter in ffn.named_parameters():
            parameter.requires_grad_(name not in frozen)
        with torch.no_grad():
            model = add_routers(
                to_moe(nn.Sequential(copy.deepcopy(ffn)), [NEURONS]), "regression", 4
            )
        for name, parameter in model[0].named_parameters():
            if name.startswith("router"):
                assert parameter.requires_grad
            else:
                theirs = f"{name.removesuffix('_bias')}.{'bias' if 'bias' in name else 'weight'}"
                assert parameter.requires_grad == (theirs not in frozen), name


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_projections_that_are_taken_apart_train_as_before(name, trainable):
    _, model = create_model(TINY[name], ABOUT_OF[name])
    with torch.no_grad():
        separate_projections(name, model.requires_grad_(trainable))
    found = [
        p.requires_grad for layer in find(model, Projection).values() for p in layer.parameters()
    ]
    assert set(found) == {trainable}


# Gradients


@pytest.mark.parametrize("backend", ["auto", "dense", "dynamic_k"])
@pytest.mark.parametrize("rule, value", [("dynamic_k", 0.7), ("top_k", 2), ("coverage", 0.5)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_those_of_the_masked_sum(gated, training, rule, value, backend):
    moe = split_ffn(make_ffn(7, 320, "gelu", gated=gated), torch.arange(320).view(5, 64))
    model = add_routers(nn.Sequential(moe), "regression", 4).train(training)
    set_selection(model, rule, value)
    moe.backend.name = backend
    z = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        mask = moe.selection(moe.router(z))
        mask[..., 2] = False  # an expert that no token runs
    moe.selection.register_forward_hook(lambda *_: mask)
    weights = [p for name, p in moe.named_parameters() if "router" not in name]
    outputs = [
        torch.einsum("...e,eo->...o", moe.hidden(z)[..., i, :], moe.down[i]) for i in range(5)
    ]
    expected = moe.down_bias + sum(mask[..., i, None] * out for i, out in enumerate(outputs))
    found = moe(z)
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad(expected.square().sum(), [z, *weights])
    ours = torch.autograd.grad(found.square().sum(), [z, *weights])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert ours[0].any()
    for gradient in ours[1:]:
        if gradient.shape[0] == 5:
            assert not gradient[2].any() and gradient[mask.any(0).any(0)].any()


# What is refused


def ffn_model() -> nn.Module:
    return nn.Sequential(make_ffn(7, 20, "relu"), make_ffn(7, 20, "relu"))


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([], "2 FFNs, neurons are of 0"),
        ([NEURONS], "2 FFNs, neurons are of 1"),
        ([NEURONS] * 3, "2 FFNs, neurons are of 3"),
        ([NEURONS, NEURONS[:4]], r"1: neurons \[4, 4\] must be all of the FFN's 20"),
        ([NEURONS, NEURONS * 0], r"1: neurons \[5, 4\] must be all"),
        ([NEURONS, NEURONS + 1], r"1: neurons \[5, 4\] must be all"),
        ([NEURONS, NEURONS - 1], r"1: neurons \[5, 4\] must be all"),
        ([NEURONS, torch.arange(24).view(6, 4)], r"1: neurons \[6, 4\] must be all"),
        ([NEURONS, NEURONS.flatten()], "1: neurons must be a tensor of integers"),
        ([NEURONS, NEURONS.float()], "1: neurons must be a tensor of integers"),
        ([NEURONS, NEURONS > 3], "1: neurons must be a tensor of integers"),
        ([NEURONS, NEURONS.tolist()], "1: neurons must be a tensor of integers"),
        ([NEURONS, NEURONS[:0]], "must be all"),
    ],
)
def test_neurons_that_do_not_split_the_ffns_are_refused_and_nothing_is_changed(neurons, message):
    model = ffn_model()
    with pytest.raises(ModelError, match=message):
        to_moe(model, neurons)
    assert len(find(model, FFN)) == 2 and not find(model, MoE)


def test_other_integers_split_an_ffn_too():
    ffn, z = make_ffn(7, 20, "relu"), torch.randn(3, 7)
    for dtype in (torch.int32, torch.int16):
        assert torch.equal(split_ffn(ffn, NEURONS.to(dtype))(z), split_ffn(ffn, NEURONS)(z))


def test_quantized_weights_are_refused():
    ffn = make_ffn(7, 20, "relu")
    ffn.down.weight = nn.Parameter(ffn.down.weight.char(), requires_grad=False)
    with pytest.raises(ModelError, match=r"down is torch.int8: split it .* before"):
        split_ffn(ffn, NEURONS)


@pytest.mark.parametrize("number", [0, -1, 3, 2.5, 4.0, "4", None, True, 40])
def test_impossible_numbers_of_experts_are_refused(number):
    ffn = make_ffn(7, 20, "relu")
    with pytest.raises(ModelError, match=r"num_experts = .*whole number|do not divide 20"):
        assign_neurons(ffn.up.weight, number, "kmeans", 0)
    with pytest.raises(ModelError, match=r"num_experts = .*whole number|do not divide 20"):
        MoE(ffn, number)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(ModelError, match=r"seed = .*whole number of at least 0"):
        assign_neurons(torch.rand(20, 7), 5, "random", seed)


def test_rows_of_another_form_are_refused():
    with pytest.raises(ModelError, match=r"rows must be \[d_ff, d_model\], these are \[20\]"):
        assign_neurons(torch.rand(20), 5, "contiguous", 0)


@pytest.mark.parametrize("width", [0, -2, 1.5, "8", None])
def test_impossible_widths_of_routers_are_refused(width):
    with pytest.raises(ModelError, match=r"width of a router = .*whole number"):
        add_routers(make_split(), "regression", width)


def test_models_without_layers_to_convert_are_refused():
    with pytest.raises(ModelError, match="the model has 0 FFNs"):
        to_moe(nn.Sequential(nn.Linear(3, 3)), [NEURONS])
    with pytest.raises(ModelError, match="no MoE layers"):
        add_routers(make_dense(), "regression", 4)
    with pytest.raises(ModelError, match="holds no FFN"):
        rebuild_experts(nn.Linear(3, 3), None, {"ffn": 4})


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        (lambda: assign_neurons(torch.rand(8, 4), 2, "k-means", 0), "kmeans, random, contiguous"),
        (
            lambda: add_routers(make_split(), "Regression", 4),
            "regression, root_regression, classification",
        ),
        (lambda: set_selection(make_split(), "topk", 2), "dynamic_k, top_k, coverage"),
        (lambda: set_activation(make_dense(), "ReLU"), "relu, relu_squared, gelu"),
        (lambda: make_ffn(7, 20, "swish"), "relu, relu_squared, gelu"),
        (lambda: penalty("hoyer", []), "relu_hoyer, relu_l1"),
        (lambda: Backend("triton"), "auto, dense, dynamic_k"),
        (lambda: setattr(make_split().encoder.layers[0].mlp.backend, "name", ""), "auto, dense"),
        (
            lambda: make_split().encoder.layers[0].mlp.run(torch.rand(2, 16), "sparse"),
            "auto, dense",
        ),
        (lambda: projection_mlps(make_dense(), {"query": 8}), "q, k, v, o"),
    ],
)
def test_unknown_names_are_refused_and_the_allowed_ones_listed(call, allowed):
    with pytest.raises(UnknownName, match=f"allowed: {allowed}") as error:
        call()
    assert isinstance(error.value, UserError)


def test_a_converted_model_equals_the_dense_one_whatever_its_mode():
    dense = make_dense()
    for training in (True, False):
        split = make_split().train(training)
        torch.testing.assert_close(split(make_inputs()), dense.train(training)(make_inputs()))
