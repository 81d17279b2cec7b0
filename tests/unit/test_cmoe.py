"""Laws of CMoE: experts and router of hand-made cases, the base at the mildest point, balance."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import make_ffn, read_from
from small_cases import CASES, FFNS
from small_config import refusal, with_everything
from torch import nn
from torch.nn.functional import normalize, softmax

from d2dmoe.checkpoint import load_model, save_model
from d2dmoe.errors import CheckpointError, ConfigError, ModelError
from d2dmoe.formulas import ffn_flops
from d2dmoe.jobs.run import Run
from d2dmoe.layers import describe
from d2dmoe.methods.cmoe.carving import carve_neurons, firing
from d2dmoe.methods.cmoe.options import CMoEConfig
from d2dmoe.methods.cmoe.router import WeightedMoE, add_analytic_router
from d2dmoe.methods.cmoe.training import carve
from d2dmoe.moe import MoE, set_selection, split_ffn, watch_inputs, watch_selections
from d2dmoe.padding import real_tokens
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import chains
from d2dmoe.quality import quality
from d2dmoe.stages.drawn import drawn_batches
from d2dmoe.stages.evaluate import evaluate, evaluate_dense
from d2dmoe.surgery import find

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
EXPERTS, SHARED, SIZE = 8, 3, 4
OPTIONS = {
    "expert_size": SIZE,
    "shared": SHARED,
    "firing": 6,
    "top_k": 5,
    "samples": 24,
    "lr": 0.01,
    "batch_size": 8,
}
MEASURE = {"split": "test", "batch_size": 20, "values": []}


def config(**changes) -> CMoEConfig:
    return CMoEConfig(**OPTIONS | {"epochs": 0.0} | changes)


def inputs_of(split) -> dict[str, torch.Tensor]:
    return split.batch(split.read(torch.arange(len(split))), CPU)[0]


@pytest.fixture(scope="module", params=FFNS)
def case(request, tmp_path_factory) -> SimpleNamespace:
    """A dense model, and the experts that were carved out of it without any training."""
    make, spec, split = CASES[request.param]
    folder, dense = tmp_path_factory.mktemp(request.param), make()
    save_model(folder / "dense", dense, spec)
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(split, monkeypatch)
        model, spec, history = carve(folder / "dense", config(), RUN)
    assert history == []
    save_model(folder / "cmoe", model, spec)
    return SimpleNamespace(folder=folder, dense=dense, split=split, name=request.param)


@pytest.fixture
def read(case, monkeypatch) -> None:
    read_from(case.split, monkeypatch)


# Hand-made cases.


def test_the_neurons_that_fire_most_are_shared_and_the_others_are_clustered_by_their_patterns():
    """Of 8 neurons: 6 and 1 fire most; 0, 3 and 5 fire for the first tokens, 2, 4, 7 for the
    last."""
    first, last = [0, 3, 5], [2, 4, 7]
    fires = torch.zeros(12, 8, dtype=torch.bool)
    fires[:10, 6] = fires[:9, 1] = True
    fires[:4, first] = True
    fires[8:, last] = True
    fires[4, 0] = fires[7, 7] = True  # so these two lie farther from their clusters' means
    for seed in range(3):
        carved = carve_neurons(torch.cat([fires, fires]), 4, 1, seed)
        assert carved.neurons.shape == (4, 2) and carved.neurons[0].tolist() == [6, 1]
        carved = carve_neurons(fires[:, first + last], 2, 0, seed)
        assert carved.neurons.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert carved.representatives.tolist() == [1, 3]  # neurons 3 and 2


def test_the_largest_neurons_fire_whatever_the_lengths_of_tokens_and_rows():
    ffn = make_ffn(6, 12, "relu", gated=True, bias=False)
    z = torch.randn(20, 6)
    fires = firing(ffn, z, 3)
    hidden = (normalize(z) @ normalize(ffn.gate.weight).T).relu()
    hidden = (hidden * (normalize(z) @ normalize(ffn.up.weight).T)).abs()
    for token, values in enumerate(hidden):
        chosen = [i for i in values.topk(3).indices.tolist() if values[i] > 0]
        assert fires[token].nonzero().flatten().tolist() == sorted(chosen)
    with torch.no_grad():
        ffn.gate.weight *= torch.rand(12, 1) + 0.1
        ffn.up.weight *= torch.rand(12, 1) + 0.1
    assert torch.equal(firing(ffn, z * (torch.rand(20, 1) + 0.1), 3), fires)
    assert not firing(ffn, torch.zeros(2, 6), 3).any()  # a neuron that gives 0 never fires


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_analytic_router_is_its_formula(gated, bias):
    """Scores are |act(w·z + b)| (times the up map's, if gated) of the representatives, with rows of
    unit length: worked out here row by row."""
    ffn = make_ffn(6, 12, "gelu", gated=gated, bias=bias)
    moe = split_ffn(ffn, torch.arange(12).view(4, 3))
    router = add_analytic_router(moe, 1)
    representatives = torch.tensor([5, 6, 10])
    router.take(ffn, representatives)
    z = torch.randn(7, 6)

    def mapped(layer: nn.Linear, token: torch.Tensor, neuron: int) -> torch.Tensor:
        row = layer.weight[neuron]
        out = sum(a * b for a, b in zip(row, token, strict=True))
        return (out + (layer.bias[neuron] if bias else 0)) / row.square().sum().sqrt()

    with torch.no_grad():
        for token, scores in zip(z, router(z), strict=True):
            expected = []
            for neuron in representatives.tolist():
                value = nn.functional.gelu(mapped(ffn.activated, token, neuron))
                expected.append(abs(value * mapped(ffn.up, token, neuron) if gated else value))
            torch.testing.assert_close(scores[1:], softmax(torch.stack(expected), 0))
            assert scores[0] > 1e30


def test_outputs_are_weighted_by_one_and_the_scaled_probability():
    torch.manual_seed(0)
    ffn = make_ffn(6, 12, "relu")
    moe: Any = split_ffn(ffn, torch.arange(12).view(4, 3), WeightedMoE)
    plain: Any = split_ffn(ffn, torch.arange(12).view(4, 3))
    router = add_analytic_router(moe, 1)
    router.take(ffn, torch.tensor([5, 6, 10]))
    plain.router, z = router, torch.randn(7, 6)
    for layer in (moe, plain):
        layer.operating_point = "top_k", 2
    with torch.no_grad():
        torch.testing.assert_close(moe(z), plain(z))  # the scale is 0
        router.scale += torch.tensor([1.0, 2.0, 3.0])
        probabilities = router.hidden(z).softmax(-1)
        best = probabilities.argmax(-1)
        outputs = torch.einsum("tne,ned->tnd", moe.hidden(z), moe.down)
        rows = torch.arange(len(z))
        weights = 1 + probabilities[rows, best] * router.scale[best]
        routed = outputs[rows, best + 1] * weights.unsqueeze(1)
        torch.testing.assert_close(moe(z), outputs[:, 0] + routed + moe.down_bias)


def test_offsets_follow_the_loads_of_routed_experts():
    moe = MoE(make_ffn(6, 12, "relu"), 4)
    router = add_analytic_router(moe, 1)
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 1]]).bool()  # loads 3, 0, 2
    router.balance(mask, 0.01)
    assert router.offset.tolist() == pytest.approx([-0.01, 0.01, -0.01])
    router.balance(torch.ones(3, 4, dtype=torch.bool), 0.01)  # all alike: nothing moves
    assert router.offset.tolist() == pytest.approx([-0.01, 0.01, -0.01])


# The whole stage.


def test_every_neuron_is_in_one_expert_of_equal_size(case):
    model, _ = load_model(case.folder / "cmoe")
    rows = {"vit": "up", "bert": "up", "gemma": "gate"}[case.name]
    ffns = [m for m in case.dense.modules() if type(m).__name__ == "FFN"]
    for ffn, moe in zip(ffns, find(model, MoE).values(), strict=True):
        own, dense = getattr(moe, rows), ffn.activated.weight
        assert own.shape[:2] == (EXPERTS, SIZE)
        where = (own.flatten(0, 1).unsqueeze(1) == dense).all(-1).nonzero()[:, 1]
        assert sorted(where.tolist()) == list(range(EXPERTS * SIZE))
        representatives = normalize(dense)[where[SHARED * SIZE :]].view(EXPERTS - SHARED, SIZE, -1)
        router = getattr(moe.router, rows).weight
        near = (representatives - router.unsqueeze(1)).abs().amax(-1) < 1e-6
        assert (near.sum(1) == 1).all()  # one of each expert's own neurons


def test_with_all_experts_it_equals_its_base_and_costs_its_routers_more(case, read):
    (dense,), _, _ = evaluate_dense(case.folder / "dense", "dense", MEASURE, RUN)
    cfg = MEASURE | {"values": [1, 3, 5, EXPERTS]}
    points, layers, _ = evaluate(case.folder / "cmoe", "top_k", cfg, RUN)
    assert points[-1]["loss"] == pytest.approx(dense["loss"], rel=1e-5)
    assert points[-1]["accuracy"] == dense["accuracy"]
    gated = case.name == "gemma"
    router = 2 * 16 * (EXPERTS - SHARED) * (2 if gated else 1)
    routers = 2 * dense["tokens"] * router
    assert points[-1]["flops"] == pytest.approx(dense["flops"] + routers, rel=1e-12)
    expert = ffn_flops(16, SIZE, gated)
    for point in points:
        saved = 2 * dense["tokens"] * (EXPERTS - point["knob_value"]) * expert
        assert point["flops"] == pytest.approx(points[-1]["flops"] - saved, rel=1e-12)
    assert {(row["knob_value"], row["experts"]) for row in layers} == {
        (k, k) for k in cfg["values"]
    }
    assert points[0]["params"] > dense["params"]


def test_shared_experts_run_first_in_the_order_in_which_they_fire(case):
    model, _ = load_model(case.folder / "cmoe")
    inputs = inputs_of(case.split)
    with torch.no_grad(), watch_selections(model) as masks:
        for k in (1, 2, 3, 5):
            set_selection(model, "top_k", k)
            model(**inputs)
            for mask in masks.values():
                assert mask[..., : min(k, SHARED)].all()
                assert (mask[..., SHARED:].sum(-1) == max(0, k - SHARED)).all()


def test_the_kernels_run_it_as_dense_experts_do(case):
    model, _ = load_model(case.folder / "cmoe")
    with torch.no_grad(), watch_inputs(model) as seen:
        model(**inputs_of(case.split))
    for name, moe in find(model, MoE).items():
        for point in (("top_k", 4), ("dynamic_k", 0.5), ("dynamic_k", 0.0)):
            moe.operating_point = point
            out = [moe.run(seen[name], backend) for backend in ("dense", "dynamic_k", "auto")]
            torch.testing.assert_close(out[1], out[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(out[2], out[0], rtol=1e-4, atol=1e-5)


def test_its_routers_choose_better_than_the_last_experts_do(case):
    """By the norms of what is left out, at as many experts."""
    model, _ = load_model(case.folder / "cmoe")
    set_selection(model, "top_k", 5)
    inputs = inputs_of(case.split)
    with torch.no_grad(), watch_inputs(model) as seen, watch_selections(model) as masks:
        model(**inputs)
        lost, others = 0.0, 0.0
        for name, moe in find(model, MoE).items():
            norms = moe.output_norms(seen[name])[..., SHARED:]
            lost += norms[~masks[name][..., SHARED:]].mean()
            others += norms.mean()
    assert lost < others


def test_padding_fires_nothing(tmp_path, monkeypatch):
    """What stands in padding changes no expert."""
    make, spec, split = CASES["bert"]
    save_model(tmp_path / "dense", make(), spec)
    read_from(split, monkeypatch)
    seen = []
    monkeypatch.setattr(
        "d2dmoe.methods.cmoe.training.firing",
        lambda ffn, z, n: seen.append(len(z)) or firing(ffn, z, n),
    )
    carve(tmp_path / "dense", config(samples=100, batch_size=3), RUN)
    assert sum(seen) == 2 * int(split.lengths.sum())


def test_calibration_samples_are_drawn_once_each_by_the_seed(monkeypatch):
    images = CASES["vit"].split
    read_from(images, monkeypatch)

    def drawn(seed: int, purpose: str, count: int) -> list[tuple]:
        batches = drawn_batches(Run(seed=seed, device=CPU), purpose, count, 7)
        return [tuple(x.flatten().tolist()) for inputs, _ in batches for x in inputs["x"]]

    some, every = drawn(0, "a", 20), drawn(0, "a", 1000)
    assert len(some) == 20 and len(every) == len(images) and some == drawn(0, "a", 20)
    assert some != drawn(1, "a", 20) and some != drawn(0, "b", 20)


@pytest.mark.workflow
def test_fine_tuning_makes_it_better_and_balances_the_loads(case, read):
    path = case.folder / "tuned"
    model, spec, history = carve(case.folder / "dense", config(epochs=9, balance_rate=0.01), RUN)
    save_model(path, model, spec)
    before, _ = load_model(case.folder / "cmoe")
    after, _ = load_model(path)
    losses = [quality(m, case.split, 20, CPU)["loss"] for m in (before, after)]
    assert len(history) == 9 and losses[1] < 0.95 * losses[0]
    for moe in find(after, WeightedMoE).values():
        assert moe.router.scale.abs().min() > 0 and moe.router.offset.abs().max() > 0
        assert moe.operating_point == ("top_k", 5)
    cfg = MEASURE | {"values": [1, 5, EXPERTS]}
    plain, weighted = (
        evaluate(place, "top_k", cfg, RUN).points for place in (case.folder / "cmoe", path)
    )
    for column in ("flops", "params"):  # weights are element by element
        assert [p[column] for p in weighted] == [p[column] for p in plain]
    with torch.no_grad():
        inputs = inputs_of(case.split)
        ours, saved = (getattr(m(**inputs), "logits", m(**inputs)) for m in (model, after))
        real = real_tokens(inputs) if ours.ndim == 3 else None
        assert torch.equal(ours, saved) if real is None else torch.equal(ours[real], saved[real])


def test_a_model_of_experts_is_refused(case, read):
    with pytest.raises(CheckpointError, match="a dense one is needed"):
        carve(case.folder / "cmoe", config(), RUN)


def test_an_impossible_size_is_refused(case, read):
    with pytest.raises(ConfigError, match="expert_size = 5 does not divide the 32"):
        carve(case.folder / "dense", config(expert_size=5), RUN)


def test_its_layers_are_described_by_no_plain_values(case):
    """A description would rebuild D2DMoE's layers."""
    model, _ = load_model(case.folder / "cmoe")
    with pytest.raises(ModelError, match="saved by the pipeline alone"):
        describe(model)


def test_inputs_of_any_shape_are_taken(case):
    model, _ = load_model(case.folder / "cmoe")
    moe = next(iter(find(model, MoE).values()))
    z = torch.randn(2, 3, 16)
    with torch.no_grad():
        torch.testing.assert_close(moe(z).flatten(0, 1), moe(z.flatten(0, 1)))


# The configuration.


WRONG = [  # key of the task, value, what the message holds
    ("cmoe", None, "the task has no section cmoe"),
    ("cmoe.shared", 8, "cmoe.shared = 8 leaves none of 8 experts to route; allowed: 0 to 7"),
    ("cmoe.top_k", 2, "cmoe.top_k = 2 must be above cmoe.shared = 2 and at most 8"),
    ("cmoe.top_k", 9, "cmoe.top_k = 9 must be above cmoe.shared = 2 and at most 8"),
    ("cmoe.firing", 33, "cmoe.firing = 33 exceeds model.d_ff = 32"),
    ("cmoe.epochs", 5, "cmoe.epochs = 5 must be below sparsify.epochs + router.epochs = 5"),
    (
        "neighbours.figures.active_neurons",
        ["carved_dense"],
        "active_neurons: the variant 'carved_dense' is",
    ),
    (
        "neighbours.figures.routers",
        ["sparse", "carved"],
        "figures.routers: the variant 'carved' has no",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_impossible_options_are_refused_before_the_first_job(raw, root, key, value, message):
    raw = with_everything(raw)
    del raw["tasks"]["tiny"]["tuning"]
    assert message in refusal(raw, root, key, value)


def test_all_of_it_gets_as_many_passes_as_every_variant_or_those_of_what_it_begins_with(raw, root):
    plan = load_plan(with_everything(raw), root)
    task = plan.task("tiny")
    passes = {
        name: [(stage, cfg.epochs) for stage, cfg in chains(task, name)[0][1:]]
        for name in ("carved", "carved_dense", "carved_tuned")
    }
    assert passes == {
        "carved": [("sparsify", 3), ("cmoe", 0)],
        "carved_dense": [("finetune", 5), ("cmoe", 0)],
        "carved_tuned": [("finetune", 4), ("cmoe", 1)],
    }
    shared = [plan.line("neighbours", "tiny", name).steps[1] for name in ("carved", "sparse")]
    assert shared[0] == shared[1]  # D2DMoE's own sparsified model
