"""Laws of the sparsity penalty and of the counts of active neurons."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_dense, make_ffn, make_inputs
from torch.nn.functional import gelu

from d2dmoe.activations import ACTIVATIONS, torch_function
from d2dmoe.activity import active_neurons, count_active
from d2dmoe.errors import UnknownName
from d2dmoe.ffn import FFN, set_activation
from d2dmoe.sparsity import (
    PENALTIES,
    Activations,
    activation_of,
    alpha_at,
    penalty,
    square_hoyer,
    watch_activations,
)
from d2dmoe.surgery import find

few = settings(max_examples=25, deadline=None, derandomize=True)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activated(pre: torch.Tensor, name: str) -> Activations:
    """What the activation called `name` makes of pre-activations."""
    return Activations(pre, torch_function(name)(pre), ACTIVATIONS[name])


def drawn_layers(mode: str) -> list[Activations]:
    """Of two samples with five tokens of eight neurons each, three layers; GELU is kept."""
    name = activation_of(mode) or "gelu"
    return [activated(drawn(seed, 2, 5, 8), name) for seed in range(3)]


@few
@given(d_ff=st.integers(1, 64), scale=st.floats(0.1, 1000))
def test_square_hoyer_is_1_for_one_active_neuron_and_d_ff_for_all_equal(d_ff, scale):
    one_hot = scale * torch.eye(d_ff)
    assert torch.allclose(square_hoyer(one_hot), torch.ones(d_ff))
    assert torch.allclose(square_hoyer(torch.full((d_ff,), -scale)), torch.tensor(float(d_ff)))


@few
@given(seed=st.integers(0, 999), scale=st.floats(0.1, 1000))
def test_square_hoyer_is_scale_free_and_between_its_extremes(seed, scale):
    a = drawn(seed, 7, 16)
    assert torch.allclose(square_hoyer(scale * a), square_hoyer(a), rtol=1e-4)
    assert (square_hoyer(a) >= 1 - 1e-5).all() and (square_hoyer(a) <= 16 + 1e-4).all()


def test_square_hoyer_by_hand():
    a = torch.tensor([[3.0, 0.0, -4.0], [1.0, 2.0, 2.0]])
    assert torch.allclose(square_hoyer(a), torch.tensor([49 / 25, 25 / 9]))


def test_square_hoyer_of_a_silent_token_is_0_with_finite_gradient():
    a = torch.zeros(4, requires_grad=True)
    square_hoyer(a).backward()
    assert square_hoyer(a) == 0 and a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # pre [-1, 2, 3], relu [0, 2, 3]: 25 / 13; pre [-2, -1, 4], relu [0, 0, 4]: 1
        ("relu_hoyer", (25 / 13 + 1) / 2),
        ("relu_l1", (5 + 4) / 2),
        # pre + 10: [9, 12, 13] and [8, 9, 14]
        ("gelu_clamped", (34 + 31) / 2),
        ("gelu_hoyer_clamped", (34**2 / 394 + 31**2 / 341) / 2),
    ],
)
def test_penalties_by_hand(mode, expected):
    pre = torch.tensor([[-1.0, 2.0, 3.0], [-2.0, -1.0, 4.0]])
    layer = activated(pre, activation_of(mode) or "gelu")
    assert penalty(mode, [layer]).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", ["gelu_clamped", "gelu_hoyer_clamped"])
def test_clamped_modes_ignore_neurons_below_the_displacement(mode):
    pre = torch.tensor([[-12.0, -30.0, -9.0]])
    assert penalty(mode, [activated(pre, "gelu")]).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("mode", "same"), [("gelu_clamped", "relu_l1"), ("gelu_hoyer_clamped", "relu_hoyer")]
)
def test_clamped_modes_measure_a_relu_layer_by_its_activations(mode, same):
    """Such as the MLP of an attention projection, beside FFNs that keep GELU."""
    relu, other = drawn_layers("relu_l1")[0], drawn_layers(mode)[1]
    assert penalty(mode, [relu]) == penalty(same, [relu])
    both = (penalty(mode, [relu]) + penalty(mode, [other])) / 2
    assert penalty(mode, [relu, other]).item() == pytest.approx(both.item(), rel=1e-6)
    assert penalty(mode, [relu]) != penalty(mode, [relu._replace(activation=ACTIVATIONS["gelu"])])


@pytest.mark.parametrize("mode", PENALTIES)
def test_penalty_is_the_mean_over_layers_and_tokens(mode):
    layers = drawn_layers(mode)
    places = [(i, j) for i in range(2) for j in range(5)]
    tokens = [
        x._replace(pre=x.pre[at][None], hidden=x.hidden[at][None]) for x in layers for at in places
    ]
    single = sum(penalty(mode, [token]).item() for token in tokens) / len(tokens)
    assert penalty(mode, layers).item() == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("mode", PENALTIES)
def test_padding_is_left_out_of_the_penalty(mode):
    layers = drawn_layers(mode)
    real = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    alone = [x._replace(pre=x.pre[real], hidden=x.hidden[real]) for x in layers]
    assert penalty(mode, layers, real) == penalty(mode, alone)
    assert penalty(mode, layers, torch.ones(2, 5, dtype=torch.bool)) == penalty(mode, layers)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2, 2, 2, 2]),
        ("linear", [0, 0.5, 1, 2]),
        ("linear_warmup", [0, 1, 2, 2]),
    ],
)
def test_schedules(schedule, expected):
    shares = 0, 0.25, 0.5, 1
    assert [alpha_at(schedule, 2.0, share) for share in shares] == expected
    tensors = [torch.tensor(float(share)) for share in shares]  # as in CUDA graphs
    assert [float(alpha_at(schedule, 2.0, share)) for share in tensors] == expected


@pytest.mark.parametrize("mode", PENALTIES)
def test_a_step_on_the_penalty_alone_reaches_the_weights_and_lowers_it(mode):
    model, inputs = make_dense(), make_inputs()
    if activation := activation_of(mode):
        set_activation(model, activation)
    weights = {name: ffn.up.weight for name, ffn in find(model, FFN).items()}
    with watch_activations(model) as activations:
        model(inputs)
        before = penalty(mode, activations.values())
        before.backward()
        assert all(w.grad.abs().sum() > 0 for w in weights.values())
        slope = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * before.detach() / slope * parameter.grad
        model(inputs)
        assert penalty(mode, activations.values()) < 0.999 * before


def test_relu_modes_see_activations_after_relu():
    model = make_dense()
    set_activation(model, "relu")
    with watch_activations(model) as activations:
        model(make_inputs())
    assert len(activations) == 2
    for layer in activations.values():
        assert (layer.pre < 0).any() and torch.equal(layer.hidden, layer.pre.relu())
        assert layer.activation is ACTIVATIONS["relu"]


@pytest.mark.parametrize("gated", [False, True])
def test_watched_pairs_are_the_input_and_output_of_the_activation(gated):
    """Of a gated FFN: the gate's alone, before it is multiplied."""
    ffn, z = make_ffn(6, 10, "gelu", gated=gated), drawn(0, 3, 6)
    with watch_activations(ffn) as activations:
        ffn(z)
    ((pre, hidden, activation, projection),) = activations.values()
    assert not projection
    assert activation is ACTIVATIONS["gelu"]
    assert torch.equal(pre, (ffn.gate if gated else ffn.up)(z)) and torch.equal(hidden, gelu(pre))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_neurons_are_active_above_the_activations_threshold(name):
    """Those of functions that are exactly 0 below it are active where they put out anything."""
    record = ACTIVATIONS[name]
    steps = torch.tensor([[-1.0, 0.0, 1e-3, 0.5], [-9.0, -1.0, 0.0, 0.0]])
    layer = activated(record.threshold + steps, name)
    assert active_neurons(layer).tolist() == [2, 0]
    if record.exact:
        assert torch.equal(active_neurons(layer), (layer.hidden != 0).sum(-1))
    else:
        assert (layer.hidden[steps <= 0].abs() < 1e-7).all()


def test_the_thresholds_are_those_of_the_paper():
    pre = torch.tensor([[-11.0, -3.0, 0.0, 0.5], [-11.0, -11.0, -11.0, -11.0]])
    found = {name: active_neurons(activated(pre, name)).tolist() for name in ("relu", "gelu")}
    assert found == {"relu": [1, 0], "gelu": [3, 0]}


def test_unknown_names_are_refused_and_the_allowed_ones_listed():
    layers = drawn_layers("relu_l1")
    for call in (lambda: penalty("silu_l1", layers), lambda: activation_of("silu_l1")):
        with pytest.raises(UnknownName, match="penalty 'silu_l1'; allowed: relu_hoyer, relu_l1, "):
            call()
    with pytest.raises(UnknownName, match="schedule 'cosine'; allowed: constant, linear, "):
        alpha_at("cosine", 1.0, 0.5)
    with pytest.raises(UnknownName, match="activation 'tanh'; allowed: relu, "):
        set_activation(make_dense(), "tanh")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_histogram_counts_every_token_of_every_layer_once(activation):
    model, inputs = make_dense(), make_inputs(7)
    set_activation(model, activation)
    histogram = count_active(model, ({"x": part} for part in inputs.split(3)))
    tokens = 7 * (1 + 2 * 2)  # class token and patches
    assert histogram.shape == (2, 33) and histogram.sum(1).tolist() == [tokens] * 2
    with watch_activations(model) as activations:
        model(inputs)
    for row, layer in zip(histogram, activations.values(), strict=True):
        active = (layer.hidden > 0) if activation == "relu" else (layer.pre > -10)
        assert (row * torch.arange(33)).sum() == active.sum()
