"""Laws of the evaluation: exact numbers of experts, and nothing hangs on batches or order."""

import math

import pytest
import torch
from small import (
    make_dense,
    make_images,
    make_inputs,
    make_routed,
    make_split,
    others_later,
    values_of,
)
from small_language import (
    CAUSAL,
    CORPUS,
    LENGTH,
    VOCABULARY,
    make_corpus_split,
    make_language,
    make_routed_language,
)
from torch import nn
from torch.nn.functional import cross_entropy

from d2dmoe.data.splits import ImageSplit
from d2dmoe.evaluation import (
    cost_on,
    count_executed,
    evaluate_dense,
    evaluate_routed,
)
from d2dmoe.flops import model_cost
from d2dmoe.inputs import Inputs
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.quality import quality, validation_metrics
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES
from d2dmoe.surgery import find

CPU = torch.device("cpu")
ROUTERS = 2 * 5 * 2 * 6 * (16 + 8)  # layers, tokens, 2 h (d_model + n)
TAUS = [0.0, 0.1, 0.3, 0.6, 1.0]
IMAGES = make_images(60)
SAMPLE = {"x": make_inputs(1)}


def evaluate(rule: str, values: list, batch_size: int = 16, images: ImageSplit = IMAGES, **make):
    return evaluate_routed(make_routed(**make), images, rule, values, batch_size, CPU)


def all_of(images: ImageSplit) -> Inputs:
    return images.batch(images.read(torch.arange(len(images))), CPU)[0]


def labelled(model) -> ImageSplit:
    """Images that the model classifies rightly in about half of the cases, so that errors show."""
    with torch.no_grad():
        predictions = model(**all_of(IMAGES)).argmax(-1)
    assert len(predictions.unique()) > 1
    labels = torch.where(torch.arange(60) % 2 == 0, predictions, (predictions + 1) % 3)
    return ImageSplit(labels, IMAGES.classes, IMAGES.mean, IMAGES.std, IMAGES.decode)


def test_quality_is_that_of_all_samples_at_once():
    model = make_dense()
    images = labelled(model)
    found = quality(model, images, 16, CPU)
    assert found["accuracy"] == 0.5
    expected = cross_entropy(model(**all_of(images)), images.labels).item()
    assert found["loss"] == pytest.approx(expected, 1e-5)
    assert found["perplexity"] == math.exp(found["loss"])


@pytest.mark.parametrize("batch_size", others_later([1, 3, 5, 8], [3]))
@pytest.mark.parametrize("name", CAUSAL)
def test_the_quality_of_a_language_model_is_that_of_its_next_tokens_one_by_one(name, batch_size):
    model, blocks = make_language(name), make_corpus_split(5)
    losses, correct = [], 0
    with torch.no_grad():
        for i in range(5):
            logits = model(blocks.tokens[i : i + 1, :LENGTH].long()).logits[0]
            for position, scores in enumerate(logits.double().log_softmax(-1)):
                target = int(blocks.tokens[i, position + 1])
                losses.append(-scores[target].item())
                correct += int(scores.argmax() == target)
    found = quality(model, blocks, batch_size, CPU)
    assert found["loss"] == pytest.approx(sum(losses) / (5 * LENGTH), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / (5 * LENGTH)), rel=1e-4)
    assert found["accuracy"] == correct / (5 * LENGTH)


class Constant(nn.Module):
    """A model whose logits are the same for every token."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*input_ids.shape, -1)


def test_a_uniform_prediction_has_the_perplexity_of_the_vocabulary():
    found = quality(Constant(torch.zeros(VOCABULARY)), make_corpus_split(5), 2, CPU)
    assert found["perplexity"] == pytest.approx(VOCABULARY, rel=1e-5)


def test_a_hopeless_prediction_has_a_finite_perplexity():
    logits = torch.zeros(VOCABULARY)
    logits[0] = 1e5  # a token that never comes
    found = quality(Constant(logits), make_corpus_split(5), 2, CPU)
    assert found["loss"] > 9e4 and math.isfinite(found["perplexity"])


@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_executes_exactly_k_experts_per_token(k):
    (point,), layers, _ = evaluate("top_k", [k])
    assert [(row["layer"], row["experts"], row["std"]) for row in layers] == [(0, k, 0), (1, k, 0)]
    assert [(row["role"], row["num_experts"]) for row in layers] == [("ffn", 8)] * 2
    cost = model_cost(make_routed(), SAMPLE)
    assert point["flops"] == cost.fixed + ROUTERS + 2 * 5 * k * (4 * 16 * 4)


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_at_tau_0_quality_is_the_unrouted_models_and_cost_is_dense_plus_routers(kind):
    unrouted = make_split()
    images = labelled(unrouted)
    (point,), layers, _ = evaluate("dynamic_k", [0.0], images=images, kind=kind)
    assert point["accuracy"] == quality(unrouted, images, 16, CPU)["accuracy"] == 0.5
    assert point["loss"] == pytest.approx(quality(unrouted, images, 16, CPU)["loss"], rel=1e-6)
    assert point["flops"] == model_cost(unrouted, SAMPLE).dense + ROUTERS
    assert [row["experts"] for row in layers] == [8, 8]


def test_cost_falls_as_tau_rises_and_skipping_experts_changes_the_outputs():
    points, layers, _ = evaluate("dynamic_k", TAUS)
    costs = [point["flops"] for point in points]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(TAUS)
    assert points[0]["loss"] != points[-1]["loss"]
    assert [(p["knob"], p["knob_value"]) for p in points] == [("dynamic_k", tau) for tau in TAUS]
    assert len(layers) == 2 * len(TAUS) and layers[-1]["experts"] >= 1


def test_cost_rises_with_coverage():
    costs = [point["flops"] for point in evaluate("coverage", [0.2, 0.5, 0.9, 1.0]).points]
    assert costs == sorted(costs) and len(set(costs)) == 4


def test_the_mean_and_deviation_of_experts_are_those_over_all_tokens():
    model = make_routed()
    _, layers, _ = evaluate_routed(model, IMAGES, "dynamic_k", [0.5], 16, CPU)
    set_selection(model, "dynamic_k", 0.5)
    with torch.no_grad(), watch_selections(model) as masks:
        model(**all_of(IMAGES))
    for row, mask in zip(layers, masks.values(), strict=True):
        executed = mask.sum(-1).double()
        assert 1 < row["experts"] < 8 and row["std"] > 0
        assert row["experts"] == pytest.approx(executed.mean().item())
        assert row["std"] == pytest.approx(executed.std(correction=0).item())


@pytest.mark.parametrize("batch_size", others_later([1, 7, 60, 1000], first=[7]))
def test_the_batch_size_changes_neither_quality_nor_cost(batch_size):
    images = labelled(make_split())
    for one, other in zip(
        evaluate("dynamic_k", TAUS, 16, images).points,
        evaluate("dynamic_k", TAUS, batch_size, images).points,
        strict=True,
    ):
        assert one["accuracy"] == other["accuracy"] and one["flops"] == other["flops"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_the_order_of_the_samples_changes_neither_quality_nor_cost():
    images = labelled(make_split())
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = ImageSplit(
        images.labels[order],
        images.classes,
        images.mean,
        images.std,
        lambda i: images.decode(order[i]),
    )
    for one, other in zip(
        evaluate("dynamic_k", TAUS, images=images).points,
        evaluate("dynamic_k", TAUS, images=shuffled).points,
        strict=True,
    ):
        assert one["accuracy"] == other["accuracy"] and one["flops"] == other["flops"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize("rule", others_later(RULES, ["coverage"]))
def test_operating_points_do_not_depend_on_those_measured_before(rule):
    together, *_ = evaluate(rule, values_of(rule))
    assert [evaluate(rule, [value]).points[0] for value in values_of(rule)] == together
    assert {point["knob"] for point in together} == {rule}


def test_a_model_without_routers_has_one_operating_point():
    model = make_dense()
    (row,) = evaluate_dense(model, IMAGES, 16, CPU).points
    assert row["knob"] == "none" and row["flops"] == model_cost(model, SAMPLE).dense
    assert row["params"] == sum(p.numel() for p in model.parameters())
    assert row["accuracy"] == quality(model, IMAGES, 16, CPU)["accuracy"]


def test_executed_experts_are_counted_over_all_forwards_of_the_block_only():
    model = make_routed()
    set_selection(model, "top_k", 3)
    with count_executed(model) as executed:
        model(make_inputs(4))
        model(make_inputs(2))
    model(make_inputs(3))
    assert list(executed) == list(find(model, MoE))
    assert [(e.sums[0], e.total) for e in executed.values()] == [(6 * 5, 6 * 5 * 3)] * 2


@pytest.mark.parametrize("training", [True, False])
def test_validation_is_in_evaluation_mode_and_leaves_the_mode_as_it_was(training):
    model = make_dense().train(training)
    found = validation_metrics(model, IMAGES, 16, CPU)
    assert model.training == training
    expected = quality(model.eval(), IMAGES, 16, CPU)
    assert found == {f"validation_{key}": expected[key] for key in ("accuracy", "loss")}


def test_every_operating_point_says_how_many_tokens_a_sample_has():
    points, *_ = evaluate("dynamic_k", TAUS)
    (dense,) = evaluate_dense(make_dense(), IMAGES, 16, CPU).points
    assert {row["tokens"] for row in [dense, *points]} == {5}  # a class token and 4 patches
    blocks = make_corpus_split(3)
    (dense,) = evaluate_dense(make_language("gpt2"), blocks, 2, CPU).points
    points, *_ = evaluate_routed(make_routed_language("gpt2"), blocks, "top_k", [1, 3], 2, CPU)
    assert {row["tokens"] for row in [dense, *points]} == {LENGTH}
    assert points[0].keys() == dense.keys()


@pytest.mark.parametrize("name", CAUSAL)
def test_blocks_cost_what_one_of_them_costs(name):
    model, blocks = make_language(name), make_corpus_split(3)
    inputs, _ = blocks.batch(blocks.read(torch.tensor([0])), CPU)
    assert inputs["input_ids"].shape == (1, CORPUS["length"])
    assert cost_on(model, blocks, CPU) == model_cost(model, inputs)


def test_images_cost_what_one_of_them_costs():
    assert cost_on(make_routed(), IMAGES, CPU) == model_cost(make_routed(), SAMPLE)


def test_what_became_of_each_sample_adds_up_to_the_table():
    images = labelled(make_split())
    points, _, samples = evaluate("dynamic_k", TAUS, images=images)
    assert {name: tuple(x.shape) for name, x in samples.items()} == {
        **dict.fromkeys(("correct", "loss", "flops"), (len(TAUS), 60)),
        "targets": (60,),
    }
    assert samples["correct"].dtype == torch.uint8
    for index, point in enumerate(points):
        assert samples["correct"][index].float().mean().item() == pytest.approx(point["accuracy"])
        assert samples["loss"][index].mean().item() == pytest.approx(point["loss"], rel=1e-5)
        assert samples["flops"][index].mean().item() == pytest.approx(point["flops"], rel=1e-6)
    assert samples["flops"][2].unique().numel() > 1  # images differ


def test_a_samples_outcome_is_that_of_the_sample_alone():
    model, images = make_routed(), labelled(make_split())
    together = evaluate_routed(model, images, "dynamic_k", [0.3], 16, CPU).samples
    for i in (0, 17, 59):
        alone = ImageSplit(
            images.labels[i : i + 1],
            images.classes,
            images.mean,
            images.std,
            lambda chosen, i=i: images.decode(chosen + i),
        )
        found = evaluate_routed(model, alone, "dynamic_k", [0.3], 1, CPU).samples
        for name, values in found.items():
            assert values[..., 0] == pytest.approx(together[name][..., i], rel=1e-4)


def test_the_outcome_of_a_block_is_the_sum_over_its_tokens():
    blocks = make_corpus_split(5)
    for found in (
        evaluate_dense(make_language("gpt2"), blocks, 2, CPU),
        evaluate_routed(make_routed_language("gpt2"), blocks, "top_k", [1], 2, CPU),
    ):
        (point,), _, samples = found
        assert samples["targets"].tolist() == [LENGTH] * 5
        assert samples["loss"].sum().item() / (5 * LENGTH) == pytest.approx(point["loss"], rel=1e-5)
        assert samples["correct"].sum().item() / (5 * LENGTH) == pytest.approx(point["accuracy"])
        assert samples["flops"].tolist() == [[pytest.approx(point["flops"])] * 5]
