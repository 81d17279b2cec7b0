"""Laws of SEER-MoE: removing nothing changes nothing; the lowest go; parameters and cost fall."""

import math
from types import SimpleNamespace

import pytest
import torch
from small import (
    SPEC,
    make_routed,
    others_later,
    read_from,
    with_experts,
    with_routers,
)
from small_cases import CASES, FFNS
from small_config import refusal, with_everything
from small_language import (
    WIDTH,
    language_spec,
    make_routed_language,
)
from torch import nn

from d2dmoe.checkpoint import load_model, save_model
from d2dmoe.errors import CheckpointError
from d2dmoe.formulas import ffn_flops, router_flops
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.layers import describe
from d2dmoe.layers import rebuild as rebuild_described
from d2dmoe.methods.seer.evaluation import evaluate_active
from d2dmoe.methods.seer.options import SEERConfig
from d2dmoe.methods.seer.pruning import executed, keep_experts, kept_experts, run_share
from d2dmoe.methods.seer.training import prune_experts, router_entropy
from d2dmoe.moe import MoE, set_selection, watch_inputs, watch_selections
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import chains
from d2dmoe.quality import count_parameters, quality
from d2dmoe.stages.evaluate import evaluate
from d2dmoe.surgery import find

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
MEASURE = {"split": "test", "batch_size": 20, "values": []}
ROUTED = {"activation": "relu"}


def routed(name: str):
    if name == "vit":
        return make_routed(), with_routers(with_experts(SPEC))
    spec = with_routers(with_experts(language_spec(name, **ROUTED)), width=WIDTH)
    return make_routed_language(name, tau=0.0), spec


WIDTHS = {"vit": 6, "bert": WIDTH, "gemma": WIDTH}


def config(**changes) -> SEERConfig:
    return SEERConfig(
        **{"epochs": 0, "lr": 0.01, "batch_size": 8, "active": 0.5}
        | {"removed": 0.25, "scope": "layer", "samples": 20}
        | changes
    )


@pytest.fixture(params=others_later(FFNS, ["bert"]))
def case(request, tmp_path, monkeypatch) -> SimpleNamespace:
    """A saved routed model of 8 experts of 4 a layer, and the data that all is read from."""
    split = CASES[request.param].split
    model, spec = routed(request.param)
    save_model(tmp_path / "routed", model, spec)
    read_from(split, monkeypatch)

    def prune(**changes) -> nn.Module:
        made, own, history = prune_experts(tmp_path / "routed", config(**changes), RUN)
        save_model(tmp_path / "seer", made, own)
        assert bool(history) == ("epochs" in changes)
        return load_model(tmp_path / "seer")[0]

    inputs, _ = split.batch(split.read(torch.arange(len(split))), CPU)
    return SimpleNamespace(
        folder=tmp_path, prune=prune, split=split, inputs=inputs, name=request.param
    )


# Hand-made cases.

MASSES = {"a": torch.tensor([4.0, 1, 3, 2]), "b": torch.tensor([40.0, 60, 20, 280])}


@pytest.mark.parametrize(
    ("removed", "scope", "kept"),
    [
        (0.0, "layer", {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}),
        (0.0, "global", {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}),
        (0.25, "layer", {"a": [0, 2, 3], "b": [0, 1, 3]}),
        (0.5, "layer", {"a": [0, 2], "b": [1, 3]}),
        (0.99, "layer", {"a": [0], "b": [3]}),
        # of the layers' means, 2.5 and 100: 1.6, 0.4, 1.2, 0.8 and 0.4, 0.6, 0.2, 2.8
        (0.125, "global", {"a": [0, 1, 2, 3], "b": [0, 1, 3]}),
        (0.5, "global", {"a": [0, 2, 3], "b": [3]}),
        (0.99, "global", {"a": [0], "b": [3]}),
    ],
)
def test_the_experts_of_least_mass_are_removed(removed, scope, kept):
    found = kept_experts(MASSES, removed, scope)
    assert {name: own.tolist() for name, own in found.items()} == kept


def test_masses_of_nothing_keep_an_expert():
    found = kept_experts({"a": torch.zeros(4), "b": torch.ones(4)}, 0.9, "global")
    assert [len(own) for own in found.values()] == [1, 1]


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (0.1, 1), (0.5, 3), (0.9, 5), (1.0, 6)])
def test_a_share_of_the_experts_left_is_executed_and_one_at_least(share, count):
    assert executed(share, 6) == count


def test_the_entropy_is_that_of_shares():
    scores = torch.tensor([[1.0, 1, 1, 1], [5.0, 0, 0, 0], [0.0, 0, 0, 0], [2.0, 2, 0, 0]])
    expected = (math.log(4) + 0 + 0 + math.log(2)) / 4
    assert router_entropy(scores).item() == pytest.approx(expected, abs=1e-6)
    scores = scores[:2].clone().requires_grad_()
    router_entropy(scores).backward()
    assert scores.grad.isfinite().all()


# The whole stage.


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_removing_nothing_changes_nothing(case, scope):
    before, _ = load_model(case.folder / "routed")
    after = case.prune(removed=0.0, scope=scope)
    assert before.state_dict().keys() == after.state_dict().keys()
    for name, weight in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], weight)
    run_share(after, 1.0)
    set_selection(before, "top_k", 8)
    with torch.no_grad():
        assert torch.equal(logits_of(after, case.inputs), logits_of(before, case.inputs))


def test_at_its_mildest_it_is_the_routed_model_at_every_expert(case):
    case.prune(removed=0.0)
    cfg = MEASURE | {"values": [1.0]}
    (point,), _, _ = evaluate_active(case.folder / "seer", "active", cfg, RUN)
    (base,), _, _ = evaluate(case.folder / "routed", "dynamic_k", MEASURE | {"values": [0.0]}, RUN)
    for column in ("loss", "accuracy", "flops", "params", "tokens"):
        assert point[column] == pytest.approx(base[column], rel=1e-5), column


def test_what_is_removed_is_expected_to_give_least(case):
    """By the scores of the routers themselves."""
    before, _ = load_model(case.folder / "routed")
    after = case.prune(samples=1000)
    with torch.no_grad(), watch_inputs(before) as seen:
        logits_of(before, case.inputs)
        mask = case.inputs.get("attention_mask")
        for name, moe in find(before, MoE).items():
            z = seen[name] if mask is None else seen[name][mask.bool()]
            mass = moe.router(z).double().flatten(0, -2).sum(0)
            kept = mass.argsort(descending=True)[:6].sort().values
            own = find(after, MoE)[name]
            assert torch.equal(own.up, moe.up[kept]) and torch.equal(own.down, moe.down[kept])
            scores = moe.router(z)[..., kept]
            torch.testing.assert_close(own.router(z), scores)


@pytest.mark.parametrize("scope", others_later(["layer", "global"], ["global"]))
def test_parameters_and_cost_fall_by_what_is_removed_and_by_what_does_not_run(case, scope):
    width, gated = WIDTHS[case.name], case.name == "gemma"
    params, flops = {}, {}
    cfg = MEASURE | {"values": [1.0, 0.4]}
    for removed in (0.0, 0.25):
        model = case.prune(removed=removed, scope=scope)
        points, layers, _ = evaluate_active(case.folder / "seer", "active", cfg, RUN)
        assert {point["params"] for point in points} == {count_parameters(model)}
        params[removed], tokens = points[0]["params"], points[0]["tokens"]
        flops[removed] = [point["flops"] for point in points]
        left = [moe.num_experts for moe in find(model, MoE).values()]
        assert sum(left) == 16 * (1 - removed) and (scope == "global" or len({*left}) == 1)
        ran = [[executed(share, n) for n in left] for share in cfg["values"]]
        assert [[row["experts"] for row in layers[i : i + 2]] for i in (0, 2)] == ran
        for point, counts in zip(points[1:], ran[1:], strict=True):
            fewer = sum(left) - sum(counts)
            saved = fewer * tokens * ffn_flops(16, 4, gated)
            assert point["flops"] == pytest.approx(flops[removed][0] - saved, rel=1e-12)
    biases = 4 if case.name != "gemma" else 0
    expert = 4 * 16 * (3 if gated else 2) + biases + width + 1  # with its output of the router
    assert params[0.0] - params[0.25] == 4 * expert
    router = router_flops(16, width, 1) - router_flops(16, width, 0)
    saved = 4 * tokens * (ffn_flops(16, 4, gated) + router)
    assert flops[0.0][0] - flops[0.25][0] == pytest.approx(saved, rel=1e-9)


@pytest.mark.workflow
def test_fine_tuning_makes_it_better_and_the_penalty_lowers_the_entropy(case):
    before = case.prune()
    run_share(before, 0.5)
    entropies, losses = {}, {}
    for weight in (0.0, 30.0):
        model, _, history = prune_experts(
            case.folder / "routed", config(epochs=6, entropy_weight=weight), RUN
        )
        assert list(history[0])[2:6] == ["loss", "task", "entropy", "routers"]
        entropies[weight] = history[-1]["entropy"]
        run_share(model, 0.5)
        losses[weight] = quality(model, case.split, 20, CPU)["loss"]
    assert losses[0.0] < 0.97 * quality(before, case.split, 20, CPU)["loss"]
    assert entropies[30.0] < 0.95 * entropies[0.0]


def test_it_is_trained_and_saved_as_it_says(case):
    model = case.prune(epochs=1, active=0.4)
    assert {m.operating_point for m in find(model, MoE).values()} == {("dynamic_k", 0.0)}
    with torch.no_grad(), watch_selections(model) as masks:
        logits_of(model, case.inputs)
    assert all(mask.all() and mask.shape[-1] == 6 for mask in masks.values())


def test_the_kernels_run_what_is_left(case):
    model = case.prune(scope="global", removed=0.4)
    with torch.no_grad(), watch_inputs(model) as seen:
        logits_of(model, case.inputs)
        for name, moe in find(model, MoE).items():
            for point in (("top_k", 2), ("dynamic_k", 0.5)):
                moe.operating_point = point
                out = [moe.run(seen[name], backend) for backend in ("dense", "dynamic_k")]
                torch.testing.assert_close(out[1], out[0], rtol=1e-4, atol=1e-5)


def test_it_is_pruned_once(case):
    case.prune()
    with pytest.raises(CheckpointError, match="that the stage seer has made already"):
        prune_experts(case.folder / "seer", config(), RUN)


def test_layers_of_fewer_experts_are_described_as_they_are():
    model = make_routed()
    for moe in find(model, MoE).values():
        keep_experts(moe, torch.tensor([0, 2, 5]))
    again = rebuild_described(make_routed(), describe(model))
    again.load_state_dict(model.state_dict())
    assert {moe.num_experts for moe in find(again, MoE).values()} == {3}


def test_frozen_experts_stay_frozen():
    model = make_routed().requires_grad_(False)
    for moe in find(model, MoE).values():
        keep_experts(moe, torch.tensor([1, 3]))
    assert not any(parameter.requires_grad for parameter in model.parameters())


# The configuration.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seer", None, "the task has no section seer"),
        ("seer.epochs", 4, "seer.epochs = 4 exceeds sparsify.epochs = 3"),
        ("seer.active", 0, "seer.active = 0"),
        ("select.active", [], "select.active is missing"),
        ("neighbours.variants.fewer.removed", 1.0, "removed = 1.0"),
        ("neighbours.variants.fewer.scope", "model", "scope = 'model'"),
    ],
)
def test_impossible_options_are_refused_before_the_first_job(raw, root, key, value, message):
    assert message in refusal(with_everything(raw), root, key, value)


def test_its_passes_are_taken_from_the_sparsifications(raw, root):
    task = load_plan(with_everything(raw), root).task("tiny")
    (chain,) = chains(task, "fewer")
    passes = {stage: cfg.epochs for stage, cfg in chain if stage not in ("dense", "clustering")}
    assert passes == {"sparsify": 2, "router": 2, "seer": 1}
