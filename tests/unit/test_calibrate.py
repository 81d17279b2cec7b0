"""Laws of evaluations and calibrations of models in memory: costs are exact, budgets are kept."""

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from several import together
from small import make_dense, make_images, make_routed, make_split, others_later
from small_language import make_routed_language, make_text_split, make_tokens

from d2dmoe.api.calibrate import calibrate, calibrate_each
from d2dmoe.api.evaluate import evaluate
from d2dmoe.api.goals import OutOfReach
from d2dmoe.api.intervals import ratio_interval
from d2dmoe.api.operating_points import _hull
from d2dmoe.api.search import Point, crossing
from d2dmoe.errors import ConfigError, DataError, UnknownName, UserError
from d2dmoe.evaluation import evaluate_dense, evaluate_routed
from d2dmoe.flops import model_cost
from d2dmoe.methods import CALIBRATED
from d2dmoe.moe import MoE, set_selection
from d2dmoe.plan.plan import load_plan
from d2dmoe.quality import batches_of
from d2dmoe.selection_rules import RULES
from d2dmoe.surgery import find

CPU = torch.device("cpu")
IMAGES, UNSEEN = make_images(120), make_images(120, seed=5)


def batches(split=IMAGES, size: int = 60) -> list:
    return list(batches_of(split, size, CPU))


def test_an_evaluation_is_the_pipelines():
    model = make_routed()
    set_selection(model, "dynamic_k", 0.3)
    found = evaluate(model, batches())
    (row,), layers, _ = evaluate_routed(model, IMAGES, "dynamic_k", [0.3], 60, CPU)
    assert found.flops == pytest.approx(row["flops"], rel=1e-14)
    assert found.accuracy == row["accuracy"]
    assert found.loss == pytest.approx(row["loss"], rel=1e-6)
    assert [x["executed"] for x in found.layers] == pytest.approx([x["experts"] for x in layers])
    for name, (low, high) in found.intervals.items():
        assert low <= getattr(found, name) <= high
    json.dumps(found.to_dict())
    assert "encoder_layer_1" in str(found)


def test_a_dense_model_costs_what_the_pipeline_says():
    (row,) = evaluate_dense(make_dense(), IMAGES, 60, CPU).points
    found = evaluate(make_dense(), batches())
    assert found.flops == found.dense_flops == row["flops"] and found.flops_ratio == 1


@pytest.mark.parametrize("size", others_later([4, 13], first=[4]))
def test_padding_costs_nothing_whatever_the_batches(size):
    texts = make_text_split((5, 12, 3, 7, 12, 4, 6, 8, 9, 10, 11, 2, 1))
    model = make_routed_language("bert", 0.5)
    found = evaluate(model, batches(texts, size))
    alone = evaluate(model, batches(texts, 1))
    assert torch.equal(found.sample_flops, alone.sample_flops)
    (row,), *_ = evaluate_routed(model, texts, "dynamic_k", [0.5], 4, CPU)
    assert found.flops == pytest.approx(row["flops"], rel=1e-12)


def test_a_language_model_has_a_perplexity_and_no_labels():
    found = evaluate(make_routed_language("gpt2"), [{"input_ids": make_tokens(4, 9)}])
    assert found.loss is not None and found.perplexity == pytest.approx(math.exp(found.loss))


@pytest.mark.parametrize("option", [{"per_layer": "yes"}, {"per_layer": 2}, {"dense_loss": "x"}])
def test_options_of_a_calibration_are_checked_before_anything_is_set(option):
    model = make_routed()
    set_selection(model, "dynamic_k", 0.3)
    with pytest.raises(UserError, match=next(iter(option))):
        calibrate(model, batches(), flops_ratio=0.9, **option)
    assert {moe.operating_point for moe in find(model, MoE).values()} == {("dynamic_k", 0.3)}


def test_texts_without_a_next_token_leave_losses_and_intervals_as_they_are():
    model, tokens = make_routed_language("gpt2"), make_tokens(4, 9)
    texts = [{"input_ids": tokens}]
    found = evaluate(model, texts)
    more = evaluate(model, [*texts, {"input_ids": tokens[:, :1]}])
    assert more.loss == found.loss and more.intervals["loss"] == found.intervals["loss"]
    assert more.samples == 8 and more.flops < found.flops


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint16", "uint8"])
def test_tokens_and_classes_are_whole_numbers_of_any_size(dtype):
    model, tokens = make_routed_language("gpt2"), make_tokens(4, 9)
    expected, small = evaluate(model, [{"input_ids": tokens}]), tokens.numpy().astype(dtype)
    for batch in ({"input_ids": small}, {"input_ids": small, "labels": small}, small):
        assert evaluate(model, [batch]).loss == expected.loss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few samples
        labels = torch.tensor([0, 1, 2, 0]).to(getattr(torch, dtype))
        evaluate(make_routed_language("bert"), [({"input_ids": tokens}, labels)])


@pytest.mark.parametrize("text", [{"labels": torch.full((4, 9), -100)}, {}])
def test_where_nothing_is_to_be_predicted_there_is_no_loss(text):
    ids = make_tokens(4, 9 if text else 1)
    with pytest.raises(DataError, match="nothing to predict"):
        evaluate(make_routed_language("gpt2"), [{"input_ids": ids} | text])


def test_the_cost_does_not_depend_on_the_backend_that_runs():
    model, inputs = make_routed(), batches()[0][0]
    sample = {"x": inputs["x"][:1]}
    cost = model_cost(model, sample)
    for moe in find(model, MoE).values():
        moe.backend.name = "dynamic_k"
    assert model_cost(model, sample) == cost
    assert {moe.backend.name for moe in find(model, MoE).values()} == {"dynamic_k"}


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("rule", others_later(RULES, ["dynamic_k"]))
def test_a_budget_is_kept(rule, per_layer):
    model = make_routed()
    found = calibrate(model, batches(), flops_ratio=0.85, rule=rule, per_layer=per_layer)
    at = {name: moe.operating_point for name, moe in find(model, MoE).items()}
    assert at == {name: (rule, value) for name, value in found.values.items()}
    assert evaluate(model, batches()).flops_ratio == pytest.approx(found.flops_ratio)
    if RULES[rule].whole:
        assert all(isinstance(k, int) for k in found.values.values())
        assert 0.75 < found.flops_ratio <= 0.85
    else:
        assert abs(found.flops_ratio - 0.85) < 0.002
    assert abs(evaluate(model, batches(UNSEEN)).flops_ratio - found.flops_ratio) < 0.02
    assert per_layer or found.passes <= 15
    json.dumps(found.to_dict())
    assert "0.85" in str(found)


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_cheapest_point_within_a_tolerance_is_within_it(per_layer):
    model = make_routed()
    with torch.no_grad():  # the model is right with every expert on
        labels = [(x, model(**x).argmax(-1)) for x, _ in batches()]
    whole = evaluate(model, labels).loss
    found = calibrate(model, labels, max_loss_increase=0.01, per_layer=per_layer)
    assert whole is not None and found.loss is not None and found.loss_increase is not None
    assert found.loss <= 1.01 * whole and found.loss / whole - 1 == pytest.approx(
        found.loss_increase, abs=1e-6
    )
    assert found.flops_ratio < found.reachable[1]
    low, high = found.intervals["loss_increase"]
    assert low < found.loss_increase < high


@pytest.mark.parametrize("budget", [0.1, 1.5])
def test_budgets_that_cannot_be_met_are_refused_and_nothing_changes(budget):
    model = make_routed()
    set_selection(model, "top_k", 3)
    with pytest.raises(UserError, match=r"costs from 0\.\d+ to 1\.\d+"):
        calibrate(model, batches(), flops_ratio=budget)
    assert {moe.operating_point for moe in find(model, MoE).values()} == {("top_k", 3)}


GOALS = [{"flops_ratio": 0.9}, {"flops_ratio": 0.1}, {"max_loss_increase": 0.01}]
GOALS += [{"flops_ratio": 0.8}, {"flops_ratio": 0.8}]


def outcomes_of(found: list) -> list:
    """Of calibrations; refusals by their messages."""
    return [str(x) if isinstance(x, OutOfReach) else x for x in found]


@pytest.mark.parametrize("per_layer", [False, True])
def test_several_goals_at_once_come_to_what_each_comes_to_alone(per_layer):
    model, passes = make_routed(), []
    set_selection(model, "top_k", 3)
    model.register_forward_hook(lambda *_: passes.append(1))
    alone = [calibrate_each(model, batches(), [goal], per_layer=per_layer)[0] for goal in GOALS]
    apart = len(passes)
    found = calibrate_each(model, batches(), GOALS, per_layer=per_layer)
    assert outcomes_of(found) == outcomes_of(alone) and isinstance(found[1], OutOfReach)
    assert {moe.operating_point for moe in find(model, MoE).values()} == {("top_k", 3)}
    assert len(passes) - apart < apart / 2
    assert calibrate(model, batches(), flops_ratio=0.9, per_layer=per_layer) == found[0]


def test_processes_part_the_passes_of_a_calibration_and_find_the_same():
    def calibrations() -> tuple[list, int]:
        model, passes = make_routed(), []
        model.register_forward_hook(lambda *_: passes.append(1))
        return outcomes_of(calibrate_each(model, batches(), GOALS, per_layer=True)), len(passes)

    (found, whole), parts = calibrations(), together(2, calibrations)
    assert all(part == found and passes < whole for part, passes in parts)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({}, UserError, "either"),
        ({"flops_ratio": 0.8, "max_loss_increase": 0.1}, UserError, "either"),
        ({"flops_ratio": math.nan}, UserError, "number"),
        ({"max_loss_increase": -0.1}, UserError, "number"),
        ({"flops_ratio": 0.8, "rule": "best"}, UnknownName, "dynamic_k"),
        ({"max_loss_increase": 0.01, "dense_loss": 1e-3}, UserError, "cannot be kept"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked, error, message):
    with pytest.raises(error, match=message):
        calibrate(make_routed(), batches(), **asked)


def test_models_and_batches_that_do_not_do_are_refused():
    few = [(x["x"][:5], y[:5]) for x, y in batches()[:1]]
    for model in (make_dense(), make_split()):
        with pytest.raises(UserError, match="experts|router"):
            calibrate(model, batches(), flops_ratio=0.9)
    with pytest.raises(DataError, match="too few"):
        calibrate(make_routed(), few, flops_ratio=0.9)
    with pytest.raises(DataError, match="no targets"):
        calibrate(make_routed(), [x["x"] for x, _ in batches()], max_loss_increase=0.1)
    shuffled = torch.utils.data.DataLoader(
        [(x, int(y)) for x, y in zip(batches()[0][0]["x"], batches()[0][1], strict=True)],
        batch_size=20,
        shuffle=True,
    )
    with pytest.raises(DataError, match="shuffle"):
        calibrate(make_routed(), shuffled, flops_ratio=0.9)


def test_few_samples_make_a_warning_and_a_cost_needs_no_targets():
    unlabelled = [x["x"][:20] for x, _ in batches()[:1]]
    with pytest.warns(UserWarning, match="20 samples"):
        found = calibrate(make_routed(), unlabelled, flops_ratio=0.9)
    assert found.loss is None and set(found.intervals) == {"flops_ratio"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(make_routed(), batches(), flops_ratio=0.9)


@pytest.mark.parametrize("knob", CALIBRATED.knobs)
def test_the_pipeline_measures_budgets_on_the_split_asked_for(knob, monkeypatch):
    from d2dmoe.stages import calibrate as stage

    splits = {"validation": IMAGES, "test": UNSEEN}
    monkeypatch.setattr(stage, "open_split", lambda _folder, name: splits[name])
    loaded = []
    monkeypatch.setattr(
        stage, "load_model", lambda path: (loaded.append(path), (make_routed(), None))[1]
    )
    run = SimpleNamespace(device=CPU, data=None, log_every_s=10.0)
    values = [0.01, 0.8, 0.9]  # the first is out of reach
    cfg = {"split": "test", "batch_size": 60, "values": values}
    points, layers, _ = stage.evaluate_budgets("", knob, cfg, run)
    assert [(p["knob"], p["knob_value"]) for p in points] == [(knob, 0.8), (knob, 0.9)]
    dense = evaluate_dense(make_dense(), UNSEEN, 60, CPU).points[0]["flops"]
    assert [p["flops"] / dense for p in points] == pytest.approx([0.8, 0.9], abs=0.02)
    assert (
        len(layers) == 4
        and layers[0].keys()
        == evaluate_routed(make_routed(), UNSEEN, "top_k", [1], 60, CPU).layers[0].keys()
    )
    taus = [float(tau) for tau in points[0]["tau"].split()]
    model = make_routed()
    for moe, tau in zip(find(model, MoE).values(), taus * 2, strict=False):
        moe.operating_point = "dynamic_k", tau
    assert evaluate(model, batches(UNSEEN)).flops == pytest.approx(points[0]["flops"])
    chosen = stage.choose("", knob, cfg, run)
    del splits["validation"]  # what was chosen is not chosen anew for each split
    again = stage.evaluate_budgets("", knob, cfg | {"chosen": chosen}, run)
    assert (again.points, again.layers) == (points, layers)
    assert len(loaded) == 2  # by the first call, which chose too, and by the choice


def test_a_variant_with_budgets_shares_its_twins_model(raw, root):
    task = raw["tasks"]["tiny"]
    task["select"]["budget"] = [0.7]
    twin = {"method": "d2dmoe", "label": "at budgets", "select": "budget"}
    task["variants"]["calibrated"] = task["variants"]["sparse"] | twin
    plan = load_plan(raw, root)
    lines = {line.variant: line for line in plan.lines("main", "tiny")}
    assert lines["calibrated"].folder == lines["sparse"].folder
    assert lines["calibrated"].evaluation("test").endswith("/evaluate/test/budget.csv")
    assert lines["calibrated"].how.reads == ("validation",)
    task["figures"]["layers"] = {"variants": ["calibrated"], "values": [0.7]}
    with pytest.raises(ConfigError, match="has budget instead"):
        load_plan(raw, root)
    del task["select"]["budget"], task["figures"]["layers"]
    with pytest.raises(ConfigError, match="select.budget is missing"):
        load_plan(raw, root)


def test_a_crossing_is_found_between_neighbours():
    low, high = crossing(lambda x: x**3 - 8, Point(0, -8), Point(10, 992), step=1e-3, passes=40)
    assert low.y < 0 <= high.y and high.x - low.x <= 1e-3 and low.x <= 2 <= high.x
    low, high = crossing(lambda k: k - 6.5, Point(1, -5.5), Point(64, 57.5), step=1)
    assert (low.x, high.x) == (6, 7)


def test_the_hull_has_the_corners_from_below():
    x, y = [0.0, 1, 2, 3, 4], [4.0, 1.5, 2.0, 0.25, 0]
    assert _hull(x, y) == [0, 1, 3, 4]


def test_an_interval_holds_the_mean_of_other_samples_as_often_as_it_says():
    generator, inside = torch.Generator().manual_seed(1), 0
    for _ in range(100):
        ours, others = torch.rand(2, 60, generator=generator, dtype=torch.float64)
        interval = ratio_interval(ours, torch.ones_like(ours), again=True)
        assert interval is not None
        inside += interval[0] <= float(others.mean()) <= interval[1]
    assert 88 <= inside <= 100


def test_samples_of_one_document_count_as_the_few_that_they_are():
    generator = torch.Generator().manual_seed(1)
    documents = torch.rand(20, generator=generator, dtype=torch.float64)
    blocks, ones = documents.repeat_interleave(50), torch.ones(1000, dtype=torch.float64)
    of_blocks, of_documents = ratio_interval(blocks, ones), ratio_interval(documents, ones[:20])
    assert of_blocks is not None and of_documents == pytest.approx(of_blocks, abs=1e-12)
