"""Laws of the evaluation: exact numbers of experts, and nothing hangs on batches or order."""

import pytest
import torch
from small import make_dense, make_images, make_inputs, make_routed, make_split
from torch.nn.functional import cross_entropy

from d2dmoe.data import ImageSplit, normalise
from d2dmoe.evaluate import (
    count_executed,
    evaluate_dense,
    evaluate_routed,
    quality,
    sample_of,
    validation_accuracy,
)
from d2dmoe.flops import model_cost
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.surgery import find

CPU = torch.device("cpu")
ROUTERS = 2 * 5 * 2 * 6 * (16 + 8)  # layers, tokens, 2 h (d_model + n)
TAUS = [0.0, 0.1, 0.3, 0.6, 1.0]
IMAGES = make_images(60)


def evaluate(rule: str, values: list, batch_size: int = 16, images: ImageSplit = IMAGES, **make):
    return evaluate_routed(make_routed(**make), images, rule, values, batch_size, CPU)


def labelled(model) -> ImageSplit:
    """Images that the model classifies rightly in about half of the cases, so that errors show."""
    inputs = normalise(IMAGES.batch(torch.arange(60)), IMAGES.mean, IMAGES.std)
    with torch.no_grad():
        predictions = model(inputs).argmax(-1)
    assert len(predictions.unique()) > 1
    labels = torch.where(torch.arange(60) % 2 == 0, predictions, (predictions + 1) % 3)
    return ImageSplit(labels, IMAGES.classes, IMAGES.mean, IMAGES.std, IMAGES.read)


def test_quality_is_that_of_all_samples_at_once():
    model = make_dense()
    images = labelled(model)
    inputs = normalise(images.batch(torch.arange(60)), images.mean, images.std)
    found = quality(model, images, 16, CPU)
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(cross_entropy(model(inputs), images.labels).item(), 1e-5)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_executes_exactly_k_experts_per_token(k):
    (point,), layers = evaluate("top_k", [k])
    assert [(row["layer"], row["experts"], row["std"]) for row in layers] == [(0, k, 0), (1, k, 0)]
    cost = model_cost(make_routed(), make_inputs(1))
    assert point["flops"] == cost.fixed + ROUTERS + 2 * 5 * k * (4 * 16 * 4)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_at_tau_0_quality_is_the_unrouted_models_and_cost_is_dense_plus_routers(kind):
    unrouted = make_split()
    images = labelled(unrouted)
    (point,), layers = evaluate("dynamic_k", [0.0], images=images, kind=kind)
    assert point["accuracy"] == quality(unrouted, images, 16, CPU)["accuracy"] == 0.5
    assert point["loss"] == pytest.approx(quality(unrouted, images, 16, CPU)["loss"], rel=1e-6)
    assert point["flops"] == model_cost(unrouted, make_inputs(1)).dense + ROUTERS
    assert [row["experts"] for row in layers] == [8, 8]


def test_cost_falls_as_tau_rises_and_skipping_experts_changes_the_outputs():
    points, layers = evaluate("dynamic_k", TAUS)
    costs = [point["flops"] for point in points]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(TAUS)
    assert points[0]["loss"] != points[-1]["loss"]
    assert [(p["knob"], p["knob_value"]) for p in points] == [("dynamic_k", tau) for tau in TAUS]
    assert len(layers) == 2 * len(TAUS) and layers[-1]["experts"] >= 1


def test_cost_rises_with_coverage():
    costs = [point["flops"] for point in evaluate("coverage", [0.2, 0.5, 0.9, 1.0])[0]]
    assert costs == sorted(costs) and len(set(costs)) == 4


def test_the_mean_and_deviation_of_experts_are_those_over_all_tokens():
    model = make_routed()
    _, layers = evaluate_routed(model, IMAGES, "dynamic_k", [0.5], 16, CPU)
    inputs = normalise(IMAGES.batch(torch.arange(60)), IMAGES.mean, IMAGES.std)
    set_selection(model, "dynamic_k", 0.5)
    with torch.no_grad(), watch_selections(model) as masks:
        model(inputs)
    for row, mask in zip(layers, masks.values(), strict=True):
        executed = mask.sum(-1).double()
        assert 1 < row["experts"] < 8 and row["std"] > 0
        assert row["experts"] == pytest.approx(executed.mean().item())
        assert row["std"] == pytest.approx(executed.std(correction=0).item())


@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_the_batch_size_changes_neither_quality_nor_cost(batch_size):
    images = labelled(make_split())
    for one, other in zip(
        evaluate("dynamic_k", TAUS, 16, images)[0],
        evaluate("dynamic_k", TAUS, batch_size, images)[0],
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
        lambda i: images.read(order[i]),
    )
    for one, other in zip(
        evaluate("dynamic_k", TAUS, images=images)[0],
        evaluate("dynamic_k", TAUS, images=shuffled)[0],
        strict=True,
    ):
        assert one["accuracy"] == other["accuracy"] and one["flops"] == other["flops"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_operating_points_do_not_depend_on_those_measured_before():
    together, _ = evaluate("dynamic_k", TAUS)
    assert [evaluate("dynamic_k", [tau])[0][0] for tau in TAUS] == together


def test_a_model_without_routers_has_one_operating_point():
    model = make_dense()
    (row,) = evaluate_dense(model, IMAGES, 16, CPU)
    assert row["knob"] == "none" and row["flops"] == model_cost(model, make_inputs(1)).dense
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
    assert [(e.tokens, e.total) for e in executed.values()] == [(6 * 5, 6 * 5 * 3)] * 2


@pytest.mark.parametrize("training", [True, False])
def test_validation_is_in_evaluation_mode_and_leaves_the_mode_as_it_was(training):
    model = make_dense().train(training)
    found = validation_accuracy(model, IMAGES, 16, CPU)
    assert model.training == training
    assert found == {"validation_accuracy": quality(model.eval(), IMAGES, 16, CPU)["accuracy"]}


def test_the_sample_for_counting_is_the_first_image_normalised():
    expected = normalise(IMAGES.batch(torch.tensor([0])), IMAGES.mean, IMAGES.std)
    assert torch.equal(sample_of(IMAGES, CPU), expected)
