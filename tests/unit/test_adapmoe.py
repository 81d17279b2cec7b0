"""Laws of AdapMoE's gating: T = 0 runs all; cost falls with T; sensitive layers keep more."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import ABOUT, SPEC, make_images, make_routed, read_from, with_experts, with_routers
from small_config import refusal, with_everything
from small_language import make_routed_language, make_text_split
from torch import nn
from torch.nn.functional import cross_entropy

import d2dmoe
from d2dmoe.checkpoint import load_model, save_model
from d2dmoe.errors import CheckpointError, ModelError, UserError
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.layers import describe
from d2dmoe.layers import rebuild as rebuild_described
from d2dmoe.methods.adapmoe.calibration import measure
from d2dmoe.methods.adapmoe.options import SensitivityConfig
from d2dmoe.moe import MoE, set_operating_point, set_selection, watch_selections
from d2dmoe.padding import real_tokens
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import chains
from d2dmoe.selection import by_sensitivity, dynamic_k
from d2dmoe.sensitivity import set_sensitivities
from d2dmoe.stages.evaluate import evaluate
from d2dmoe.surgery import find, watch

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
IMAGES = dataclasses.replace(make_images(24), about=ABOUT)
MEASURE = {"split": "test", "batch_size": 20}
few = settings(max_examples=60, deadline=None, derandomize=True)
rows = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(lambda r: torch.tensor(r).float())
tolerances = st.sampled_from([0.0, 1e-6, 0.01, 0.0625, 0.25, 1.0])


def samples_of(split) -> list:
    inputs, targets = split.batch(split.read(torch.arange(len(split))), CPU)
    return [({k: x[i : i + 5] for k, x in inputs.items()}, targets[i : i + 5]) for i in (0, 5)]


def layers_of(model: nn.Module) -> list[str]:
    return list(find(model, MoE))


# The rule.


@pytest.mark.parametrize(
    ("tolerance", "sensitivity", "kept"),  # shares: 0.4, 0.3, 0.2, 0.1
    [
        (0.0, 1.0, [1, 1, 1, 1]),
        (0.0, 0.0, [1, 1, 1, 1]),
        (0.0099, 1.0, [1, 1, 1, 1]),  # below 0.0995
        (0.0101, 1.0, [1, 1, 1, 0]),
        (0.1, 1.0, [1, 1, 0, 0]),  # below 0.316, which the last two's 0.3 is
        (0.1, 0.25, [1, 0, 0, 0]),  # below 0.632
        (0.1, 0.1, [1, 0, 0, 0]),  # below 1
        (1.0, 1.0, [1, 0, 0, 0]),
        (0.3, 0.0, [1, 0, 0, 0]),
    ],
)
def test_the_smallest_experts_are_dropped_while_their_share_stays_below(
    tolerance, sensitivity, kept
):
    scores = torch.tensor([[8.0, 6.0, 4.0, 2.0]])
    assert by_sensitivity(scores, tolerance, sensitivity).int().tolist() == [kept]
    flipped = by_sensitivity(scores.flip(-1), tolerance, sensitivity)
    assert flipped.int().tolist() == [kept[::-1]]


def test_with_two_experts_it_is_the_papers_rule():
    """The second expert is dropped where its share is below √(T / s)."""
    first = torch.rand(200, generator=torch.Generator().manual_seed(0)) / 2 + 0.5
    scores = torch.stack([first, 1 - first], -1)
    mask = by_sensitivity(scores, 0.02, 0.3)
    assert mask[:, 0].all()
    assert torch.equal(mask[:, 1], 1 - first >= math.sqrt(0.02 / 0.3))


@few
@given(scores=rows, pair=st.tuples(tolerances, tolerances).map(sorted), sensitivity=tolerances)
def test_a_higher_tolerance_runs_a_subset_that_still_holds_the_best(scores, pair, sensitivity):
    more, fewer = (by_sensitivity(scores, t, sensitivity) for t in pair)
    assert (more | ~fewer).all()
    assert scores.max() == 0 or (fewer & (scores == scores.max())).any()


@few
@given(scores=rows, tolerance=tolerances, pair=st.tuples(tolerances, tolerances).map(sorted))
def test_a_more_sensitive_layer_keeps_more(scores, tolerance, pair):
    fewer, more = (by_sensitivity(scores, tolerance, s) for s in pair)
    assert (more | ~fewer).all()


@few
@given(scores=rows, tolerance=tolerances)
def test_what_is_dropped_has_less_than_the_tolerated_share(scores, tolerance):
    dropped = scores[~by_sensitivity(scores, tolerance)].sum()
    assert dropped <= math.sqrt(tolerance) * scores.sum()


@few
@given(scores=rows, exponent=st.integers(-20, 20), tolerance=tolerances)
def test_it_is_scale_free(scores, exponent, tolerance):
    scaled = by_sensitivity(scores * 2.0**exponent, tolerance)
    assert torch.equal(scaled, by_sensitivity(scores, tolerance))


def test_scores_of_zero_run_nothing_unless_the_tolerance_is_0():
    scores = torch.zeros(2, 5)
    scores[1, 2] = 1
    assert by_sensitivity(scores, 0.3).sum(-1).tolist() == [0, 1]
    assert by_sensitivity(scores, 0.0).all()
    assert torch.equal(by_sensitivity(scores, 1.0), dynamic_k(scores, 1.0))


# The sensitivities.


def by_hand(model: nn.Module, batches: list) -> dict[str, float]:
    """One sample at a time."""
    set_selection(model, "dynamic_k", 0.0)
    sums, numbers = dict.fromkeys(layers_of(model), 0.0), dict.fromkeys(layers_of(model), 0)
    for inputs, targets in batches:
        for i in range(len(targets)):
            one = {k: x[i : i + 1] for k, x in inputs.items()}
            with watch(find(model, MoE), lambda _moe, _z, output: output) as outputs:
                logits = logits_of(model, one).flatten(0, -2)
            loss = cross_entropy(logits, targets[i].flatten())
            real = real_tokens(one)
            for name, grad in zip(
                outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True
            ):
                grad = grad.flatten(0, 1) if real is None else grad[real]
                sums[name] += grad.double().square().sum().item()
                numbers[name] += grad.numel()
    means = {name: total / numbers[name] for name, total in sums.items()}
    return {name: mean / max(means.values()) for name, mean in means.items()}


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_they_are_mean_squared_gradients_of_samples_losses_without_padding(name):
    split = IMAGES if name == "vit" else make_text_split()
    model = make_routed() if name == "vit" else make_routed_language("bert", tau=0.5)
    points = [moe.operating_point for moe in find(model, MoE).values()]
    batches = samples_of(split)
    found = d2dmoe.measure_sensitivity(model, batches)
    assert [moe.operating_point for moe in find(model, MoE).values()] == points
    assert [moe.selection.sensitivity for moe in find(model, MoE).values()] == [*found.values()]
    assert max(found.values()) == 1 and len({*found.values()}) == 2
    assert found == pytest.approx(by_hand(model, batches), rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_weights_change_no_sensitivity():
    batches = samples_of(IMAGES)
    expected = d2dmoe.measure_sensitivity(make_routed(), batches)
    frozen = make_routed().requires_grad_(False)
    with torch.inference_mode():
        assert d2dmoe.measure_sensitivity(frozen, batches) == pytest.approx(expected, rel=1e-6)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_what_has_no_sensitivity_is_refused():
    model, batches = make_routed(), samples_of(IMAGES)
    with pytest.raises(UserError, match="no finite gradients"):
        d2dmoe.measure_sensitivity(model, batches, loss=lambda out, _: out.sum(-1) * math.nan)
    with pytest.raises(UserError, match="no finite gradients"):
        d2dmoe.measure_sensitivity(model, batches, loss=lambda out, _: out.sum(-1) * 0)
    with pytest.raises(UserError, match="has no experts: convert it first"):
        d2dmoe.measure_sensitivity(nn.Linear(2, 2), batches)
    with pytest.raises(ModelError, match="no layer head with experts"):
        set_sensitivities(model, {"head": 1.0})
    for wrong in (-0.1, math.nan, "1", True):
        with pytest.raises(ModelError, match="must be a number from 0 on"):
            set_sensitivities(model, dict.fromkeys(layers_of(model), wrong))


# Models.


def executed(model: nn.Module, tolerance: float) -> list[float]:
    """Experts of a mean token of each layer."""
    set_operating_point(model, "sensitivity", tolerance)
    with torch.no_grad(), watch_selections(model) as masks:
        logits_of(model, samples_of(IMAGES)[0][0])
    return [mask.sum(-1).float().mean().item() for mask in masks.values()]


def test_where_an_error_costs_more_more_experts_run():
    model = make_routed()
    first, second = layers_of(model)
    alike = set_sensitivities(model, {first: 1.0, second: 1.0})
    before = executed(alike, 0.01)
    after = executed(set_sensitivities(model, {first: 0.01}), 0.01)
    assert after[0] == 1 < before[0] and after[1] > 1


def test_a_described_layer_keeps_its_sensitivity():
    model = set_sensitivities(make_routed(), {layers_of(make_routed())[0]: 0.25})
    again = rebuild_described(make_routed(), describe(model))
    assert [moe.selection.sensitivity for moe in find(again, MoE).values()] == [0.25, 1.0]


def test_a_calibration_finds_its_tolerance():
    model, batches = make_routed(), samples_of(IMAGES)
    d2dmoe.measure_sensitivity(model, batches)
    with pytest.warns(UserWarning, match="is rough"):
        found = d2dmoe.calibrate(model, batches, flops_ratio=0.8, rule="sensitivity")
    assert found.flops_ratio == pytest.approx(0.8, abs=0.01) and 0 < found.value < 1
    assert {moe.operating_point for moe in find(model, MoE).values()} == {
        ("sensitivity", found.value)
    }


# The pipeline.


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved routed model, and the same with its sensitivities."""
    save_model(tmp_path / "routed", make_routed(), with_routers(with_experts(SPEC)))
    read_from(IMAGES, monkeypatch)
    cfg = SensitivityConfig(samples=20, batch_size=8)
    model, spec, history = measure(tmp_path / "routed", cfg, RUN)
    assert history == []
    save_model(tmp_path / "adapmoe", model, spec)
    return tmp_path


def test_at_tolerance_0_it_is_the_routed_model_and_its_cost_falls_with_the_tolerance(saved):
    cfg = MEASURE | {"values": [0.0, 0.001, 0.01, 0.1, 1.0]}
    points, layers, _ = evaluate(saved / "adapmoe", "sensitivity", cfg, RUN)
    (base,), _, _ = evaluate(saved / "routed", "dynamic_k", MEASURE | {"values": [0.0]}, RUN)
    for column in ("loss", "accuracy", "flops", "params"):
        assert points[0][column] == pytest.approx(base[column], rel=1e-6)
    costs = [point["flops"] for point in points]
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.8 * costs[0]
    assert {row["experts"] for row in layers if row["knob_value"] == 1.0} == {1.0}


def test_the_saved_model_knows_its_sensitivities(saved):
    model, spec = load_model(saved / "adapmoe")
    layers = spec.parts["sensitivity"]["layers"]
    assert {n: moe.selection.sensitivity for n, moe in find(model, MoE).items()} == layers
    assert max(layers.values()) == 1
    with pytest.raises(CheckpointError, match="that the stage sensitivity has made already"):
        measure(saved / "adapmoe", SensitivityConfig(), RUN)


# The configuration.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("select.sensitivity", [], "select.sensitivity is missing"),
        ("select.sensitivity", [1.5], "select.sensitivity"),
        ("neighbours.variants.adaptive.sensitivity", {"samples": 0}, "samples = 0"),
        ("neighbours.variants.adaptive.router", "none", "router"),
        ("clustering.expert_size", 5, "clustering.expert_size = 5 must divide"),
    ],
)
def test_impossible_options_are_refused_before_the_first_job(raw, root, key, value, message):
    assert message in refusal(with_everything(raw), root, key, value)


def test_it_is_for_any_router(raw, root):
    raw = with_everything(raw)
    raw["tasks"]["tiny"]["neighbours"]["variants"]["adaptive"]["router"] = "classification"
    task = load_plan(raw, root).task("tiny")
    (chain,) = chains(task, "adaptive")
    assert dict(chain)["router"].kind == "classification"
    assert [stage for stage, _ in chain][-1] == "sensitivity"
