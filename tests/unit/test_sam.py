"""Laws of SAM: a token's experts lie in one group, one group of all is plain top-k; its losses."""

from types import SimpleNamespace

import pytest
import torch
from small import SPEC, make_routed, others_later, read_from, values_of, with_experts, with_routers
from small_cases import CASES, FFNS
from small_config import refusal, with_everything
from small_language import WIDTH, language_spec, make_routed_language
from torch import nn
from torch.nn.functional import one_hot

from d2dmoe.checkpoint import load_model, save_model
from d2dmoe.errors import CheckpointError, ModelError
from d2dmoe.formulas import ffn_flops
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.layers import describe
from d2dmoe.methods.sam.evaluation import evaluate_grouped
from d2dmoe.methods.sam.grouping import (
    GroupedSelection,
    executed,
    run_share,
    selections,
    set_groups,
)
from d2dmoe.methods.sam.locality import Locality
from d2dmoe.methods.sam.losses import alignment_loss, balance_loss
from d2dmoe.methods.sam.options import SAMConfig
from d2dmoe.methods.sam.training import group_experts, train_grouped
from d2dmoe.moe import MoE, set_selection, watch_inputs, watch_selections
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import chains
from d2dmoe.quality import count_parameters, quality
from d2dmoe.router import score_shares
from d2dmoe.selection import Selection, top_k
from d2dmoe.selection_rules import RULES
from d2dmoe.stages.evaluate import evaluate
from d2dmoe.surgery import find

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
MEASURE = {"split": "test", "batch_size": 20, "values": []}
PAIRS = torch.tensor([[0, 3], [1, 2], [5, 4]])  # three groups of two


def routed(name: str):
    if name == "vit":
        return make_routed(), with_routers(with_experts(SPEC))
    spec = language_spec(name, activation="relu")
    return make_routed_language(name, tau=0.0), with_routers(with_experts(spec), width=WIDTH)


@pytest.fixture(params=others_later(FFNS, ["bert"]))
def case(request, tmp_path, monkeypatch) -> SimpleNamespace:
    """A saved routed model of 8 experts of 4 a layer, and the data that all is read from."""
    split = CASES[request.param].split
    model, spec = routed(request.param)
    save_model(tmp_path / "routed", model, spec)
    read_from(split, monkeypatch)
    base = {"epochs": 0, "lr": 0.01, "batch_size": 8, "active": 0.5, "groups": 2}

    def train(**changes) -> tuple[nn.Module, list[dict]]:
        made, own, history = train_grouped(tmp_path / "routed", SAMConfig(**base | changes), RUN)
        save_model(tmp_path / "sam", made, own)
        return load_model(tmp_path / "sam")[0], history

    inputs, _ = split.batch(split.read(torch.arange(len(split))), CPU)
    return SimpleNamespace(
        folder=tmp_path, train=train, split=split, inputs=inputs, name=request.param
    )


def selection_at(rule: str, value: float, members: torch.Tensor = PAIRS) -> GroupedSelection:
    selection = GroupedSelection(members)
    selection.rule, selection.value = rule, value
    return selection


# The selection.


def test_the_group_of_the_largest_sum_is_chosen_and_the_best_experts_in_it():
    scores = torch.tensor([[9.0, 6, 7, 1, 0, 3], [5.0, 0, 0, 0, 1, 2]])  # sums 10, 13, 3; 5, 0, 3
    assert selection_at("top_k", 1)(scores).nonzero().tolist() == [[0, 2], [1, 0]]
    both = [[0, 1], [0, 2], [1, 0], [1, 3]]
    assert selection_at("top_k", 2)(scores).nonzero().tolist() == both
    assert selection_at("top_k", 6)(scores).nonzero().tolist() == both  # no more than there are


@pytest.mark.parametrize("rule", RULES)
def test_one_group_of_all_experts_is_the_rule_itself(rule):
    scores = torch.rand(3, 20, 8)
    scores[0, 0] = 0
    for value in values_of(rule):
        plain = Selection(rule, value)
        grouped = selection_at(rule, value, torch.arange(8).view(1, 8))
        assert torch.equal(grouped(scores), plain(scores)) and grouped.runs_all == plain.runs_all


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_what_is_selected_lies_in_one_group_and_is_the_rules_choice_among_its_experts(rule, groups):
    scores, members = torch.rand(50, 8), torch.randperm(8).view(groups, -1)
    for value in (min(v, 8 // groups) if RULES[rule].whole else v for v in values_of(rule)):
        selection = selection_at(rule, value, members)
        mask, largest = selection(scores), selection.sums(scores).argmax(-1)
        own = selection.spread(one_hot(largest, groups).bool())
        inside = scores[own].view(50, -1)
        assert torch.equal(mask[own].view(50, -1), Selection(rule, value)(inside))
        assert not (mask & ~own).any()
        assert not selection.runs_all and not selection.fused


def test_groups_touched_and_the_experts_of_groups():
    selection = selection_at("top_k", 1)
    mask = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    touched = [[True, False, False], [True, True, True], [False, False, False]]
    assert selection.touched(mask).tolist() == touched
    spread = selection.spread(torch.tensor([[False, True, False], [True, False, True]]))
    assert spread.nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 3], [1, 4], [1, 5]]


def test_a_broken_token_stays_seen():
    scores = torch.rand(2, 6)
    scores[0, 3] = torch.nan
    assert selection_at("top_k", 1)(scores)[0, 3]


@pytest.mark.parametrize("gated", [False, True])
def test_experts_whose_neurons_are_alike_form_a_group(gated):
    moe = find(make_routed_language("gemma") if gated else make_routed(), MoE)
    moe = next(iter(moe.values()))
    rows, centres = (moe.gate if gated else moe.up), torch.eye(16)[[0, 1, 2, 3, 0, 1, 2, 3]]
    with torch.no_grad():
        rows.copy_(9 * centres.unsqueeze(1) + 0.1 * rows)
    members = group_experts(moe, 4, seed=0)
    assert members.sort(1).values.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(ModelError, match="3 experts do not divide 8"):
        group_experts(moe, 3, seed=0)


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (0.1, 1), (0.5, 2), (1.0, 4)])
def test_a_share_of_a_groups_experts_is_executed_and_one_at_least(share, count):
    assert executed(share, 4) == count


# The losses.


def test_probabilities_are_shares_of_scores():
    scores = torch.tensor([[1.0, 3, 0, 0, 0, 0], [0.0] * 6])
    assert score_shares(scores).tolist() == [[0.25, 0.75, 0, 0, 0, 0], [0.0] * 6]


def test_the_balance_is_1_where_groups_are_alike_and_the_number_of_groups_where_one_has_all():
    selection = selection_at("top_k", 1)
    even = torch.tensor([[0.8, 0, 0, 0, 0.1, 0.1], [0, 0.8, 0, 0.2, 0, 0], [0, 0, 0, 0, 1, 0]])
    assert balance_loss(selection, torch.full((4, 6), 1 / 6)).item() == pytest.approx(1)
    sums = [[0.8, 0, 0.2], [0.2, 0.8, 0], [0, 0, 1]]  # each group one token
    assert balance_loss(selection, even).item() == pytest.approx(sum(map(sum, sums)) / 3)
    one = torch.tensor([[0.5, 0, 0, 0.5, 0, 0]] * 4)
    assert balance_loss(selection, one).item() == pytest.approx(3)
    leaning = torch.tensor([[0.4, 0.2, 0.1, 0.3, 0, 0]] * 4).requires_grad_()
    balance_loss(selection, leaning).backward()
    assert (leaning.grad[:, [0, 3]] > 0).all() and not leaning.grad[:, [1, 2, 4, 5]].any()


def test_the_alignment_is_the_share_of_the_best_experts_probability_outside_of_the_group():
    selection = selection_at("top_k", 2)
    p = torch.tensor([[0.4, 0, 0.05, 0.3, 0.25, 0], [0.3, 0.1, 0.28, 0.12, 0.2, 0]])
    mask = selection(p)  # sums 0.7, 0.05, 0.25; 0.42, 0.38, 0.2
    assert mask.nonzero().tolist() == [[0, 0], [0, 3], [1, 0], [1, 3]]
    expected = (0 + 0.28 / (0.3 + 0.28)) / 2
    assert alignment_loss(selection, p, mask).item() == pytest.approx(expected)
    p.requires_grad_()
    alignment_loss(selection, p, mask).backward()
    assert p.grad[1, 2] > 0 > p.grad[1, 0] and not p.grad[0].any()
    assert alignment_loss(selection, torch.zeros(1, 6), mask[:1]).item() == 0


def test_localities_of_a_hand_made_case():
    selection, counts = selection_at("top_k", 2), Locality()
    scores = torch.tensor([[0.4, 0, 0.05, 0.3, 0.25, 0], [0.3, 0.1, 0.28, 0.12, 0.2, 0]])
    counts.add(selection, scores, selection(scores))
    assert counts.row() == {"groups": 1, "top_k_groups": 1.5, "top_k_inside": 0.75}


# The whole stage.


def test_one_group_is_the_base_at_top_k(case):
    sam, _ = case.train(groups=1)
    base, _ = load_model(case.folder / "routed")
    for share, k in ((1.0, 8), (0.5, 4), (0.1, 1)):
        run_share(sam, share)
        set_selection(base, "top_k", k)
        with torch.no_grad():
            assert torch.equal(logits_of(sam, case.inputs), logits_of(base, case.inputs))
    cfg = MEASURE | {"values": [1.0]}
    points, layers, _ = evaluate_grouped(case.folder / "sam", "grouped", cfg, RUN)
    of_base = evaluate(case.folder / "routed", "top_k", MEASURE | {"values": [8]}, RUN)
    same = {"knob": "grouped", "knob_value": 1.0}
    assert points == [of_base.points[0] | same]
    assert [row["top_k_inside"] for row in layers] == [1, 1]


@pytest.mark.parametrize("groups", others_later([2, 4], [2]))
def test_cost_falls_with_each_expert_and_a_token_touches_one_group(case, groups):
    case.train(groups=groups)
    shares = [1.0, 0.5, 0.0]
    cfg = MEASURE | {"values": shares}
    points, layers, _ = evaluate_grouped(case.folder / "sam", "grouped", cfg, RUN)
    base = evaluate(case.folder / "routed", "top_k", MEASURE | {"values": [8]}, RUN).points[0]
    expert = ffn_flops(16, 4, case.name == "gemma")
    for share, point in zip(shares, points, strict=True):
        k = executed(share, 8 // groups)
        own = [row for row in layers if row["knob_value"] == share]
        assert [row["experts"] for row in own] == [k, k] and all(row["groups"] == 1 for row in own)
        assert all(1 <= row["top_k_groups"] <= min(k, groups) for row in own)
        assert all(1 / 8 <= row["top_k_inside"] <= 1 for row in own)
        saved = 2 * point["tokens"] * (8 - k) * expert
        assert base["flops"] - point["flops"] == pytest.approx(saved, rel=1e-12)
        assert point["params"] == base["params"]
    assert layers[0]["top_k_groups"] > 1


def test_plain_top_k_of_the_same_scores_is_what_it_is_compared_with(case):
    model, _ = case.train()
    cfg = MEASURE | {"values": [0.5]}
    _, layers, _ = evaluate_grouped(case.folder / "sam", "grouped", cfg, RUN)
    run_share(model, 0.5)
    grouped, real = selections(model), case.inputs.get("attention_mask")
    with torch.no_grad(), watch_inputs(model) as inputs:
        model(**case.inputs)
        for row, (name, z) in zip(layers, inputs.items(), strict=True):
            z = z.flatten(0, -2) if real is None else z[real.bool()]
            scores = model.get_submodule(name).router(z)
            best, chosen = top_k(scores, 2), grouped[name](scores)
            touched = grouped[name].touched(best).sum(-1).double().mean()
            inside = (best & grouped[name].spread(grouped[name].touched(chosen))).sum() / best.sum()
            assert row["top_k_groups"] == pytest.approx(touched.item(), rel=1e-2)
            assert row["top_k_inside"] == pytest.approx(inside.item(), rel=1e-2)


def test_a_saved_model_has_its_groups_and_runs_as_it_was_tuned(case):
    model, _ = case.train()
    run_share(model, 0.5)
    before, _ = load_model(case.folder / "routed")
    assert count_parameters(model) == count_parameters(before)
    for layer, (name, moe) in enumerate(find(model, MoE).items()):
        assert moe.operating_point == ("top_k", 2) and isinstance(moe.selection, GroupedSelection)
        members = moe.selection.members
        assert sorted(members.flatten().tolist()) == list(range(8)) and members.shape == (2, 4)
        assert torch.equal(moe.up, before.get_submodule(name).up) and layer < 2
    with torch.no_grad(), watch_selections(model) as masks:
        model(**case.inputs)
    assert all((mask.sum(-1) == 2).all() for mask in masks.values())


def test_the_kernels_run_it_as_dense_experts_do(case):
    model, _ = case.train()
    with torch.no_grad(), watch_inputs(model) as seen:
        model(**case.inputs)
    for name, moe in find(model, MoE).items():
        with torch.no_grad():
            out = [moe.run(seen[name], backend) for backend in ("dense", "dynamic_k", "auto")]
        torch.testing.assert_close(out[1], out[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out[2], out[0], rtol=1e-4, atol=1e-5)


@pytest.mark.workflow
def test_tuning_makes_it_better_and_its_losses_do_what_they_say(case):
    before, _ = case.train()
    plain = {"epochs": 10, "balance_weight": 0.0, "alignment_weight": 0.0}
    after, idle = case.train(**plain)
    losses = [quality(m, case.split, 20, CPU)["loss"] for m in (before, after)]
    assert losses[1] < 0.95 * losses[0]
    _, aligned = case.train(**plain | {"alignment_weight": 10.0})
    _, balanced = case.train(**plain | {"balance_weight": 10.0})
    assert aligned[-1]["alignment"] < 0.9 * idle[-1]["alignment"]
    assert balanced[-1]["balance"] < idle[-1]["balance"]
    assert list(idle[0])[2:7] == ["loss", "task", "balance", "alignment", "routers"]


def test_a_model_is_grouped_once(case):
    case.train()
    (case.folder / "sam").rename(case.folder / "routed")
    with pytest.raises(CheckpointError, match="sam has made already"):
        case.train()


def test_its_layers_are_described_by_no_plain_values():
    model = make_routed()
    describe(model)
    moe = next(iter(find(model, MoE).values()))
    set_groups(moe, torch.arange(8).view(2, 4))
    with pytest.raises(ModelError, match="saved by the pipeline alone"):
        describe(model)


# The configuration.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sam", None, "the task has no section sam"),
        ("sam.epochs", 9, "sam.epochs = 9 exceeds sparsify.epochs"),
        ("sam.active", 0.0, "greater than 0"),
        ("neighbours.variants.grouped.groups", 3, "groups = 3 must divide its 8 experts"),
        ("neighbours.variants.grouped.groups", 0, "greater than 0"),
        ("clustering.expert_size", 5, "clustering.expert_size = 5 must divide model.d_ff = 32"),
    ],
)
def test_impossible_options_are_refused_before_the_first_job(raw, root, key, value, message):
    assert message in refusal(with_everything(raw), root, key, value)


def test_the_fine_tuning_takes_its_passes_from_the_sparsification(raw, root):
    task = load_plan(with_everything(raw), root).task("tiny")
    (chain,) = chains(task, "grouped")
    assert sum(getattr(cfg, "epochs", 0) for _, cfg in chain[1:]) == task.epochs
    assert [stage for stage, _ in chain[1:]] == ["sparsify", "clustering", "router", "sam"]
