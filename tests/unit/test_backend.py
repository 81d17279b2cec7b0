"""How an MoE layer runs: both backends agree, calibration picks the faster, and it can say why."""

import pytest
import torch
from small import make_inputs, make_routed

from d2dmoe.backend import DECODE_TOKENS, Backend, Choice, uncalibrated
from d2dmoe.kernels.calibration import _tune, calibrate, explain
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.surgery import find

POINT = ("dynamic_k", 0.5)
SLOW = Choice("dense", 100, 0.9, 1.0, 2.0, "CPU")
FAST = Choice("dynamic_k", 1, 0.2, 3.0, 1.0, "CPU")


@pytest.fixture
def model():
    model = make_routed()
    set_selection(model, *POINT)
    return model


def backends(model, name: str) -> None:
    for moe in find(model, MoE).values():
        moe.backend.name = name


@pytest.mark.parametrize("rule, value", [("dynamic_k", 0.5), ("top_k", 2), ("coverage", 0.8)])
def test_both_backends_give_the_same_output(model, rule, value):
    set_selection(model, rule, value)
    outputs = {}
    for name in ("dense", "dynamic_k"):
        backends(model, name)
        with torch.no_grad():
            outputs[name] = model(make_inputs())
    torch.testing.assert_close(outputs["dense"], outputs["dynamic_k"], rtol=0, atol=1e-5)


def test_selections_can_be_watched_whatever_the_backend(model):
    masks = {}
    for name in ("dense", "dynamic_k"):
        backends(model, name)
        with torch.no_grad(), watch_selections(model) as seen:
            model(make_inputs())
        masks[name] = seen
    assert masks["dense"].keys() == masks["dynamic_k"].keys()
    assert all(torch.equal(masks["dense"][layer], masks["dynamic_k"][layer]) for layer in seen)


def test_gradients_flow_where_they_are_asked_for(model):
    backends(model, "dynamic_k")
    moe = next(iter(find(model, MoE).values()))
    model(make_inputs()).sum().backward()
    assert moe.down.grad is not None and moe.down.grad.any()


def test_an_uncalibrated_layer_says_so(model):
    assert Backend().pick(10, POINT) == "auto"
    (reason,) = set(explain(model).values())
    assert "not calibrated at dynamic_k = 0.5, see d2dmoe.choose_backends" in reason


@pytest.mark.parametrize(
    "share, size, expected",
    [(0.25, 128, "dynamic_k"), (0.25, 8, "dense"), (0.75, 128, "dense"), (0.0, 64, "dynamic_k")],
)
def test_without_a_calibration_large_experts_that_seldom_run_are_grouped(share, size, expected):
    mask = torch.arange(40).view(5, 8) < 40 * share
    assert uncalibrated(mask, size) == expected


def test_an_uncalibrated_layer_gives_the_same_output_whatever_it_picks(model, monkeypatch):
    monkeypatch.setattr("d2dmoe.backend.CPU_SIZE", 1)
    monkeypatch.setattr("d2dmoe.backend.CPU_SHARE", 1.0)
    with torch.no_grad():
        grouped = model(make_inputs())
        backends(model, "dense")
        torch.testing.assert_close(grouped, model(make_inputs()), rtol=0, atol=1e-5)


def test_a_layer_without_a_router_says_that_all_experts_run(model):
    moe = next(iter(find(model, MoE).values()))
    moe.router = None
    assert moe.explain() == "dense: the layer has no router, so every expert runs"


def test_calibration_gives_each_layer_a_measured_choice(model):
    choices = calibrate(model, {"x": make_inputs()})
    layers = find(model, MoE)
    assert choices.keys() == layers.keys()
    for name, choice in choices.items():
        faster = "dynamic_k" if choice.dynamic_k_ms < choice.dense_ms else "dense"
        assert choice.backend == faster == layers[name].backend.pick(choice.tokens, POINT)
        assert 0 < choice.density < 1 and choice.tokens == make_inputs().shape[0] * 5
        assert explain(model)[name] == str(choice) and f"{choice.density:.0%}" in str(choice)


@pytest.fixture
def tuned(monkeypatch) -> list[tuple]:
    """What the kernel was tuned with."""
    pytest.importorskip("triton", reason="this platform has no Triton")
    seen: list[tuple] = []
    monkeypatch.setattr("d2dmoe.kernels.tuning.tune", lambda *args: seen.append(args))
    return seen


def test_nothing_is_tuned_on_the_cpu(model, tuned):
    calibrate(model, {"x": make_inputs()})
    assert not tuned


def test_the_kernel_for_many_tokens_is_tuned_by_the_layers_own_inputs_and_mask(model, tuned):
    moe = next(iter(find(model, MoE).values()))
    z = torch.randn(4, 5, moe.d_model)
    mask = moe.selection(moe.router(z))
    _tune(moe, z[:3], mask[:3])  # 15 tokens
    _tune(moe, z, mask)
    ((tokens, weights, chosen),) = tuned
    assert torch.equal(tokens, z.flatten(0, 1)) and torch.equal(chosen, mask.flatten(0, 1))
    assert weights.up is moe.up


def test_no_deterministic_kernel_is_tuned(model, tuned):
    moe = next(iter(find(model, MoE).values()))
    z = torch.randn(20, moe.d_model)
    torch.use_deterministic_algorithms(True)
    try:
        _tune(moe, z, moe.selection(moe.router(z)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not tuned


def calibrated(**backends: str) -> Backend:
    """Calibrated at these numbers of tokens, as `n_2048="dense"`."""
    backend = Backend()
    for name, choice in backends.items():
        backend.remember(SLOW._replace(backend=choice, tokens=int(name[2:])), POINT)
    return backend


@pytest.mark.parametrize("first, second", [("dense", "dynamic_k"), ("dynamic_k", "dense")])
def test_the_choice_made_for_the_nearest_number_of_tokens_by_ratio_counts(first, second):
    """Whatever the order of calibration; at equal ratios the larger counts."""
    for numbers in ({"n_32": first, "n_2048": second}, {"n_2048": second, "n_32": first}):
        backend = calibrated(**numbers)
        found = {tokens: backend.pick(tokens, POINT) for tokens in (17, 32, 255, 256, 1024, 9999)}
        assert found == dict.fromkeys((17, 32, 255), first) | dict.fromkeys(
            (256, 1024, 9999), second
        )


def test_a_choice_holds_for_the_kernel_only_that_it_was_measured_of():
    """Up to 16 tokens a GPU runs another kernel than for more."""
    both = calibrated(n_1="dynamic_k", n_2048="dense")
    found = [both.pick(tokens, POINT) for tokens in (0, 1, DECODE_TOKENS, DECODE_TOKENS + 1, 1024)]
    assert found == ["dynamic_k"] * 3 + ["dense"] * 2
    few, many = calibrated(n_1="dynamic_k"), calibrated(n_2048="dynamic_k")
    assert few.pick(1024, POINT) == "auto" and few.pick(16, POINT) == "dynamic_k"
    assert many.pick(16, POINT) == "auto" and many.pick(17, POINT) == "dynamic_k"


def test_a_choice_holds_at_its_operating_point_only():
    backend = Backend()
    backend.remember(FAST, POINT)
    assert backend.pick(1, ("dynamic_k", 0.1)) == "auto"
    assert "not calibrated at dynamic_k = 0.1" in backend.explain(("dynamic_k", 0.1))
    backend.remember(SLOW, ("top_k", 3))
    assert backend.pick(1, POINT) == "auto" and list(backend.choices) == [100]


def test_a_set_backend_is_used_whatever_was_measured():
    backend = Backend("dynamic_k")
    backend.remember(SLOW, POINT)
    assert backend.pick(100, POINT) == "dynamic_k"
    assert backend.explain(POINT) == "dynamic_k: set so"
