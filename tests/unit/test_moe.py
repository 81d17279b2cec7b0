"""Laws of the layer that replaces an FFN."""

import copy
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_dense, make_ffn, make_inputs, make_routed, make_split, others_later
from torch import nn
from torch.utils.checkpoint import checkpoint

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.backend import Choice
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.errors import ModelError, UnknownName
from d2dmoe.experts import METHODS, assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.kernels.cpu import grouped
from d2dmoe.moe import (
    MoE,
    operating_point,
    set_operating_point,
    set_selection,
    split_ffn,
    watch_inputs,
    watch_selections,
)
from d2dmoe.router import Router
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES
from d2dmoe.surgery import find

FORMS = [{"gated": gated, "bias": bias} for gated in (False, True) for bias in (True, False)]
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


def expert_outputs(ffn: FFN, neurons: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Each expert's output from the FFN's own weights, one by one: [tokens, n, d_model]."""
    outputs = []
    for own in neurons:
        hidden = ffn.activation(mapped(ffn.activated, own, z))
        if ffn.gate is not None:
            hidden = hidden * mapped(ffn.up, own, z)
        outputs.append(hidden @ ffn.down.weight[:, own].T)
    return torch.stack(outputs, 1)


def mapped(layer: nn.Linear, neurons: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Some of a linear map's outputs."""
    out = z @ layer.weight[neurons].T
    return out if layer.bias is None else out + layer.bias[neurons]


def outside(ffn: FFN) -> torch.Tensor:
    """What the FFN gives without any neuron: b2."""
    return torch.zeros(ffn.d_model) if ffn.down.bias is None else ffn.down.bias


@few
@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    form=st.sampled_from(FORMS),
    method=st.sampled_from(list(METHODS)),
    num_experts=st.integers(1, 6),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_all_experts_on_equals_the_dense_ffn(activation, form, method, num_experts, size, seed):
    ffn = make_ffn(7, num_experts * size, activation, seed, **form)
    moe = split_ffn(ffn, assign_neurons(ffn.activated.weight, num_experts, method, seed))
    z = tokens(seed, 9, 7)
    everything = torch.ones(9, num_experts, dtype=torch.bool)
    assert relative_error(moe(z), ffn(z)) < 1e-5
    assert relative_error(moe(z.view(3, 3, 7)).flatten(0, 1), ffn(z)) < 1e-5
    assert relative_error(grouped(z, everything, moe.weights), ffn(z)) < 1e-5


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("activation", others_later(ACTIVATIONS, ["relu", "silu"]))
def test_a_permutation_of_the_hidden_neurons_changes_nothing(activation, form):
    ffn, z = make_ffn(7, 24, activation, **form), tokens(0, 9, 7)
    neurons = assign_neurons(ffn.activated.weight, 6, "kmeans", 0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    permuted = make_ffn(7, 24, activation, **form)
    with torch.no_grad():
        permuted.down.weight.copy_(ffn.down.weight[:, order])
        for name in ("up", "gate"):
            for key, parameter in permuted.named_parameters():
                if key.startswith(name):
                    parameter.copy_(ffn.get_parameter(key)[order])
    where = order.argsort()  # neuron i of the FFN is neuron where[i] of the permuted one
    one, other = split_ffn(ffn, neurons), split_ffn(permuted, where[neurons])
    mask = random_mask(2, 9, 6, 0.5)
    assert torch.equal(one(z), other(z))
    assert torch.equal(grouped(z, mask, one.weights), grouped(z, mask, other.weights))
    clustered = split_ffn(permuted, assign_neurons(permuted.activated.weight, 6, "kmeans", 0))
    assert relative_error(clustered(z), ffn(z)) < 1e-5


@few
@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 99),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    count=st.integers(1, 12),
)
def test_the_grouped_computation_equals_the_masked_sum_of_the_experts_outputs(
    activation, form, seed, density, count
):
    ffn = make_ffn(7, 20, activation, seed, **form)
    neurons = assign_neurons(ffn.up.weight, 5, "random", seed)
    moe, z = split_ffn(ffn, neurons), tokens(seed, count, 7)
    mask = random_mask(seed, count, 5, density)
    mask[:, seed % 5] = False  # an expert that no token runs
    mask[0] = False  # a token that runs none
    outputs = expert_outputs(ffn, neurons, z)
    expected = (outputs * mask.unsqueeze(-1)).sum(1) + outside(ffn)
    for found in (grouped(z, mask, moe.weights), masked_forward(moe, z, mask)):
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(grouped(z, mask, moe.weights)[0], outside(ffn))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_expert_leaves_b2_alone_and_no_token_gives_no_output(form):
    ffn = make_ffn(7, 20, "gelu", **form)
    moe, z = split_ffn(ffn, torch.arange(20).view(5, 4)), tokens(0, 3, 7)
    none = torch.zeros(3, 5, dtype=torch.bool)
    assert torch.equal(grouped(z, none, moe.weights), outside(ffn).expand(3, 7))
    assert torch.equal(masked_forward(moe, z, none), outside(ffn).expand(3, 7))
    assert grouped(z[:0], none[:0], moe.weights).shape == (0, 7)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_output_norms_are_the_norms_of_the_experts_outputs(activation, form):
    ffn, z = make_ffn(7, 20, activation, **form), tokens(0, 9, 7)
    neurons = assign_neurons(ffn.activated.weight, 5, "random", 0)
    moe = split_ffn(ffn, neurons)
    expected = expert_outputs(ffn, neurons, z).norm(dim=-1)
    assert torch.allclose(moe.output_norms(z), expected, rtol=1e-4, atol=1e-6)
    in_sequence = moe.output_norms(z.view(3, 3, 7))
    assert torch.allclose(in_sequence.flatten(0, 1), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_hidden_activations_are_grouped_by_expert(gated):
    ffn, z = make_ffn(7, 20, "relu", gated=gated), tokens(0, 9, 7)
    neurons = assign_neurons(ffn.activated.weight, 5, "random", 0)
    hidden = ffn.activation(ffn.gate(z)) * ffn.up(z) if gated else ffn.activation(ffn.up(z))
    assert torch.allclose(split_ffn(ffn, neurons).hidden(z), hidden[:, neurons], atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("place", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_experts_are_of_the_ffns_shape_activation_device_and_dtype(place, form):
    ffn = make_ffn(6, 20, "gelu_tanh", **form).to(place)
    for moe in (MoE(ffn, 5), split_ffn(ffn, torch.arange(20).view(5, 4))):
        weights, theirs = list(moe.parameters()), list(ffn.parameters())
        assert moe.activation_name == "gelu_tanh"
        assert sum(w.numel() for w in weights) == sum(w.numel() for w in theirs)
        for name in ("up", "gate", "down"):  # a bias where the FFN has one, none elsewhere
            layer = getattr(ffn, name)
            assert (getattr(moe, f"{name}_bias") is None) == (layer is None or layer.bias is None)
        assert {(w.device, w.dtype) for w in weights} == {(w.device, w.dtype) for w in theirs}


def test_the_router_decides_by_the_layers_own_input():
    ffn, z = make_ffn(7, 20, "relu"), tokens(0, 30, 7)
    moe = split_ffn(ffn, torch.arange(20).view(5, 4))
    torch.manual_seed(0)
    moe.router = Router(7, 6, 5, "regression")
    moe.selection.value = 0.5
    scores = moe.router(z)
    mask = scores >= 0.5 * scores.amax(-1, keepdim=True)
    assert 0 < mask.sum() < mask.numel()
    assert relative_error(moe(z), grouped(z, mask, moe.weights)) < 1e-5


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


@pytest.mark.parametrize(("rule", "value"), [("dynamic_k", 0.25), ("top_k", 3), ("coverage", 1)])
def test_an_operating_point_is_of_all_layers_or_by_their_names(rule, value):
    model = make_routed()
    first, last = find(model, MoE)
    assert set_operating_point(model, rule, value) is model
    assert operating_point(model) == {first: (rule, value), last: (rule, value)}
    set_operating_point(model, "top_k", {last: 5})
    assert operating_point(model) == {first: (rule, value), last: ("top_k", 5)}
    set_operating_point(model, rule, {first: torch.tensor(value).double(), last: np.float64(value)})
    assert operating_point(model) == {first: (rule, value), last: (rule, value)}
    for _, stored in operating_point(model).values():
        assert type(stored) is (int if RULES[rule].whole else float)


@pytest.mark.parametrize(
    ("rule", "value"),
    [("dynamic_k", v) for v in (-0.1, 1.1, math.nan, math.inf, "0.5", None, True, 1j, [0.5])]
    + [("coverage", v) for v in (-0.1, 1.1, math.nan)]
    + [("top_k", v) for v in (0, -1, 9, 2.5, math.nan, math.inf, "3", None, True)],
)
def test_impossible_operating_points_are_refused_and_change_nothing(rule, value):
    model = make_routed()
    before, (first, last) = operating_point(model), find(model, MoE)
    good = 1 if RULES[rule].whole else 0.5
    for values in (value, {first: good, last: value}):
        with pytest.raises(
            ModelError, match=rf"{RULES[rule].symbol} = .* of the rule {rule}: must"
        ):
            set_operating_point(model, rule, values)
    assert operating_point(model) == before


def test_layers_that_no_operating_point_can_be_of_are_refused():
    model = make_routed()
    with pytest.raises(ModelError, match=r"no routed layers block; it has encoder\."):
        set_operating_point(model, "top_k", {"block": 3})
    with pytest.raises(UnknownName, match="allowed: dynamic_k, top_k, coverage"):
        set_operating_point(model, "topk", 3)
    for other, message in ((make_split(), "without a router"), (make_dense(), "no MoE layers")):
        with pytest.raises(ModelError, match=message):
            set_operating_point(other, "top_k", 3)
        with pytest.raises(ModelError, match=message):
            operating_point(other)


class Texts(nn.Module):
    """Calls an FFN as models of transformers call theirs."""

    def __init__(self):
        super().__init__()
        self.mlp = make_ffn(7, 20, "relu")

    def forward(self, z, attention_mask=None):
        return self.mlp(z)


def routed_texts() -> nn.Module:
    torch.manual_seed(0)
    model = to_moe(Texts(), [torch.arange(20).view(5, 4)])
    return add_routers(model, "regression", 6)


def test_a_layer_treats_all_tokens_alike_and_holds_nothing_of_a_call():
    model, z = routed_texts(), tokens(0, 6, 7).view(2, 3, 7)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    whole = model(z)
    for mask in (torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.zeros(2, 1, 3, 3), {"full": None}):
        assert torch.equal(model(z, attention_mask=mask), whole)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_numbers(reentrant):
    model, z = routed_texts(), tokens(0, 6, 7).view(2, 3, 7)
    set_selection(model, "dynamic_k", 0.5)

    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        inputs = z.clone().requires_grad_()
        arguments = (inputs, torch.tensor([[1, 1, 0], [1, 1, 1]]))
        if checkpointed:
            out = checkpoint(model, *arguments, use_reentrant=reentrant)
        else:
            out = model(*arguments)
        model(z[:1])  # another call before the backward pass leaves nothing behind
        out.square().sum().backward()
        found = [inputs.grad, *(p.grad for p in model.mlp.parameters() if p.grad is not None)]
        model.zero_grad()
        return found

    plain, again = gradients(False), gradients(True)
    assert len(plain) == len(again) > 3
    assert all(map(torch.equal, plain, again))


def test_threads_that_share_a_model_get_what_each_alone_gets():
    model, batches = routed_texts(), [tokens(n, 4 * n, 7).view(4, n, 7) for n in (3, 9)]
    set_selection(model, "dynamic_k", 0.5)

    def run(z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(z, attention_mask=torch.ones(z.shape[:2]).tril())

    alone = list(map(run, batches))
    with ThreadPoolExecutor(2) as threads:
        for expected, found in zip(alone * 20, threads.map(run, batches * 20), strict=True):
            assert torch.equal(expected, found)


BROKEN = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_a_broken_token_comes_out_broken_by_every_backend_and_alone(kind, whole, broken, rule):
    ffn = make_ffn(16, 320, "relu")
    moe = split_ffn(ffn, torch.arange(320).view(5, 64)).eval()
    torch.manual_seed(0)
    moe.router = Router(16, 8, 5, kind)
    moe.selection.rule, moe.selection.value = rule, 2 if RULES[rule].whole else 0.6
    z = tokens(0, 9, 16)
    with torch.no_grad():
        expected = moe.run(z, "dense")
        z[3, slice(None) if whole else 5] = broken
        assert not ffn(z)[3].isfinite().any()
        for backend in ("dense", "dynamic_k", "auto"):
            found = moe.run(z, backend)
            assert not found[3].isfinite().any()
            others = torch.arange(9) != 3
            assert relative_error(found[others], expected[others]) < 1e-5


def test_what_an_expert_that_does_not_run_computes_is_nowhere_in_the_output():
    moe, z = split_ffn(make_ffn(7, 20, "relu"), torch.arange(20).view(5, 4)), tokens(0, 9, 7)
    mask = random_mask(0, 9, 5, 0.5)
    mask[:, 2] = False
    expected = masked_forward(moe, z, mask)
    with torch.no_grad():
        moe.up[2] = torch.inf
        assert torch.equal(masked_forward(moe, z, mask), expected)
    assert torch.equal(masked_forward(moe, z, mask), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_without_gradients_the_same_bytes_come_out(dtype):
    moe = split_ffn(make_ffn(7, 20, "gelu"), torch.arange(20).view(5, 4)).to(dtype)
    z, mask = tokens(0, 9, 7).to(dtype), random_mask(0, 9, 5, 0.5)
    expected = masked_forward(moe, z, mask)
    with torch.inference_mode():
        assert torch.equal(masked_forward(moe, z, mask), expected)


def routed_ffn(activation: str, kind: str = "regression", gated: bool = False) -> tuple[FFN, MoE]:
    """An FFN, and the layer of its experts with a router that selects some."""
    ffn = make_ffn(7, 20, activation, gated=gated)
    moe = split_ffn(ffn, torch.arange(20).view(5, 4))
    torch.manual_seed(0)
    moe.router, moe.selection.value = Router(7, 6, 5, kind), 0.5
    return ffn, moe


@pytest.mark.parametrize("kind", ROUTER_KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_copied_and_pickled_layers_compute_the_same(activation, kind):
    ffn, moe = routed_ffn(activation, kind)
    z = tokens(0, 9, 7)
    for layer in (ffn, moe):
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(z), layer(z))
            assert list(other.state_dict()) == list(layer.state_dict())
    assert not [key for key in ffn.state_dict() if "activation" in key]


def test_a_copy_changes_its_activation_and_rule_alone():
    ffn, moe = routed_ffn("relu")
    other, copied = copy.deepcopy(ffn), copy.deepcopy(moe)
    other.set_activation("gelu")
    set_selection(copied, "top_k", 2)
    assert (ffn.activation_name, other.activation_name) == ("relu", "gelu")
    assert (moe.operating_point, copied.operating_point) == (("dynamic_k", 0.5), ("top_k", 2))
    assert (copied.selection(tokens(0, 9, 5)).sum(-1) == 2).all()


UNPICKLED = """
import pickle, sys, torch
moe, z, expected = pickle.load(open(sys.argv[1], "rb"))
assert not [name for name in sys.modules if name == "triton"], "Triton is imported"
with torch.no_grad():
    found = torch.compile(moe, fullgraph=True, backend="eager")(z)
torch.testing.assert_close(found, expected)
"""


@pytest.mark.workflow
def test_a_pickled_layer_can_be_compiled_in_another_process(tmp_path):
    _, moe = routed_ffn("gelu")
    z, moe.backend.name = tokens(0, 40, 7), "dynamic_k"
    with torch.no_grad():
        (tmp_path / "layer").write_bytes(pickle.dumps((moe, z, moe(z))))
    call = [sys.executable, "-c", UNPICKLED, str(tmp_path / "layer")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.workflow
@pytest.mark.parametrize(
    "case",
    others_later(
        [("dynamic_k", 0.5, "auto"), ("top_k", 2, "dense"), ("coverage", 0.8, "dynamic_k")],
        first=[("dynamic_k", 0.5, "auto")],
    ),
)
def test_a_layer_is_compiled_without_a_break_for_any_number_of_tokens(case):
    rule, value, backend = case
    _, moe = routed_ffn("gelu_tanh", "classification", gated=True)
    set_selection(moe, rule, value)
    moe.backend.name = backend
    for number in (4, 300):
        moe.backend.remember(Choice("dynamic_k", number, 0.5, 2.0, 1.0, "CPU"), (rule, value))
    torch.compiler.reset()
    compiled = torch.compile(moe, fullgraph=True, backend="eager")
    with torch.no_grad():
        for number in (9, 16, 17, 40, 41):
            z = tokens(0, number, 7)
            torch.testing.assert_close(compiled(z), moe(z))


def test_unknown_names_are_refused_and_the_allowed_ones_listed():
    ffn, moe = routed_ffn("relu")
    with pytest.raises(UnknownName, match="activation 'tanh'; allowed: relu, relu_squared, gelu"):
        ffn.set_activation("tanh")
    with pytest.raises(UnknownName, match="rule 'best'; allowed: dynamic_k, top_k, coverage"):
        set_selection(moe, "best", 1)
    assert ffn.activation_name == "relu" and moe.operating_point == ("dynamic_k", 0.5)
    ffn(tokens(0, 9, 7)), moe(tokens(0, 9, 7))


@pytest.mark.parametrize("backend", ["auto", "dense"])
def test_where_every_expert_runs_nothing_is_routed_unless_it_is_watched(backend):
    moe = next(iter(find(make_routed(), MoE).values()))
    moe.backend.name = backend
    z, seen = tokens(0, 5, moe.d_model), []
    with watch_selections(moe) as masks, torch.no_grad():
        routed = moe(z)
    assert masks[""].all() and masks[""].shape == (5, moe.num_experts)
    moe.router.layers[0].register_forward_hook(lambda *_: seen.append(True))
    with torch.no_grad():
        assert torch.equal(moe(z), routed) and seen == []
        moe.operating_point = "coverage", 1.0  # which leaves out experts of score 0
        moe(z)
    assert seen
