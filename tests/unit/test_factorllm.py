"""Laws of FactorLLM: with K = N it is its base, the labels and losses of hand-made cases, cost."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import make_ffn, others_later, read_from
from small_cases import CASES, FFNS
from small_config import refusal, with_everything
from torch.nn.functional import kl_div, softmax

from d2dmoe.checkpoint import load_model, save_model
from d2dmoe.errors import ConfigError, ModelError
from d2dmoe.formulas import ffn_flops
from d2dmoe.jobs.run import Run
from d2dmoe.layers import describe
from d2dmoe.methods.factorllm.evaluation import evaluate_factors
from d2dmoe.methods.factorllm.layer import FactorMoE, add_linear_router
from d2dmoe.methods.factorllm.losses import balance_loss, label_divergence, teacher_labels
from d2dmoe.methods.factorllm.options import FactorLLMConfig
from d2dmoe.methods.factorllm.training import train_factorllm
from d2dmoe.moe import set_selection, split_ffn, watch_inputs
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import chains
from d2dmoe.quality import quality
from d2dmoe.stages.evaluate import evaluate_dense
from d2dmoe.surgery import find, watch

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
MEASURE = {"split": "test", "batch_size": 20, "values": []}


def config(**changes) -> FactorLLMConfig:
    return FactorLLMConfig(**{"epochs": 0, "lr": 0.01, "batch_size": 8, "active": 2} | changes)


@pytest.fixture(params=others_later(FFNS, ["gemma"]))
def case(request, tmp_path, monkeypatch) -> SimpleNamespace:
    """A saved dense model, and the data that all is read from."""
    make, spec, split = CASES[request.param]
    save_model(tmp_path / "dense", make(), spec)
    read_from(split, monkeypatch)

    def train(**changes) -> tuple[Any, list[dict]]:
        model, made, history = train_factorllm(tmp_path / "dense", config(**changes), RUN)
        save_model(tmp_path / "factors", model, made)
        return model, history

    return SimpleNamespace(folder=tmp_path, train=train, split=split, name=request.param)


def make_layer(k: int, gated: bool = False, bias: bool = True) -> tuple[Any, Any]:
    ffn = make_ffn(6, 12, "gelu", gated=gated, bias=bias)
    moe = split_ffn(ffn, torch.arange(12).view(4, 3), FactorMoE)
    add_linear_router(moe)
    moe.operating_point = "top_k", k
    return ffn, moe


@pytest.mark.parametrize("backend", ["dense", "dynamic_k", "auto"])
@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, False)])
def test_the_sum_of_k_of_n_experts_is_scaled_and_the_bias_is_not(backend, gated, bias):
    ffn, moe = make_layer(4, gated, bias)
    z = torch.randn(7, 6)
    with torch.no_grad():
        torch.testing.assert_close(moe.run(z, backend), ffn(z), rtol=1e-4, atol=1e-5)
        for k in (1, 2, 3):
            moe.operating_point = "top_k", k
            outputs = torch.einsum("tne,ned->tnd", moe.hidden(z), moe.down)
            best = moe.router(z).topk(k, -1).indices.unsqueeze(-1).expand(-1, -1, 6)
            expected = 4 / k * outputs.gather(1, best).sum(1)
            expected = expected + ffn.down.bias if bias else expected
            torch.testing.assert_close(moe.run(z, backend), expected, rtol=1e-4, atol=1e-5)
        moe.operating_point = "dynamic_k", 0.0
        torch.testing.assert_close(moe.run(z, backend), ffn(z), rtol=1e-4, atol=1e-5)


def outputs_of(moe: Any, z: torch.Tensor) -> torch.Tensor:
    """Each expert's, [tokens, N, d_out]."""
    return torch.einsum("tne,ned->tnd", moe.hidden(z), moe.down)


@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, False)])
def test_in_training_it_computes_what_it_does_otherwise_and_shows_each_experts_output(gated, bias):
    _, moe = make_layer(2, gated, bias)
    z = torch.randn(3, 7, 6, requires_grad=True)
    found = []
    for training in (False, True):
        moe.train(training).zero_grad()
        with watch({"each": moe.outputs}, lambda _module, _input, output: output) as seen:
            out = moe(z)
        gradients = torch.autograd.grad(out.square().sum(), [z, moe.up, moe.down])
        found.append((out, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    expected = outputs_of(moe, z.flatten(0, 1)).unflatten(0, (3, 7))
    torch.testing.assert_close(seen["each"], expected)


def test_labels_are_the_experts_nearest_to_their_share_of_the_teachers_output():
    ffn, moe = make_layer(2)
    z = torch.randn(30, 6)
    labels = teacher_labels(outputs_of(moe, z), ffn, z, 2)
    assert labels.dtype == torch.bool and (labels.sum(1) == 2).all()
    with torch.no_grad():
        for token, chosen in zip(z, labels, strict=True):
            wanted = (ffn(token) - ffn.down.bias) * 2 / 4
            errors = []
            for expert in range(4):
                rows = slice(3 * expert, 3 * expert + 3)
                hidden = torch.nn.functional.gelu(ffn.up(token)[rows])
                errors.append((ffn.down.weight[:, rows] @ hidden - wanted).square().mean())
            best = torch.stack(errors).argsort()[:2]
            assert sorted(best.tolist()) == chosen.nonzero().flatten().tolist()
    assert len({tuple(row) for row in labels.tolist()}) > 1


def test_an_expert_that_gives_just_its_share_is_labelled():
    ffn, moe = make_layer(1)
    with torch.no_grad():
        ffn.down.weight[:] = moe.down[:3] = 0  # the teacher and three experts give 0
        moe.down[3] = 1
    z = torch.randn(9, 6)
    labels = teacher_labels(outputs_of(moe, z), ffn, z, 1)
    assert not labels[:, 3].any()


def test_the_divergence_is_that_from_the_softmax_of_the_labels():
    logits, labels = torch.randn(5, 4), torch.tensor([[1, 1, 0, 0]] * 5).bool()
    theirs = torch.tensor([torch.e, torch.e, 1, 1]) / (2 * torch.e + 2)
    expected = kl_div(theirs.log().expand(5, 4), softmax(logits, -1), reduction="batchmean")
    torch.testing.assert_close(label_divergence(logits, labels), expected)
    assert label_divergence(labels.float() + 3, labels).item() == pytest.approx(0, abs=1e-6)


def test_the_balance_is_one_where_all_run_alike_and_largest_where_the_same_always_do():
    logits = torch.zeros(4, 4)
    spread = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]]).bool()
    assert balance_loss(logits, spread).item() == pytest.approx(1)
    logits[:, :2] = 50.0
    same = torch.tensor([[1, 1, 0, 0]] * 4).bool()
    assert balance_loss(logits, same).item() == pytest.approx(4 / 2)
    logits = torch.tensor([[2.0, 0, 0, 0]] * 4).requires_grad_()
    balance_loss(logits, same).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 2:] < 0).all()


def test_with_k_equal_n_it_is_its_base(case):
    case.train(active=4)
    (dense,), _, _ = evaluate_dense(case.folder / "dense", "dense", MEASURE, RUN)
    (point,), layers, _ = evaluate_factors(case.folder / "factors", "factors", MEASURE, RUN)
    assert point["loss"] == pytest.approx(dense["loss"], rel=1e-5)
    assert point["accuracy"] == dense["accuracy"]
    assert (point["knob"], point["knob_value"]) == ("factors", 4)
    routers = 2 * dense["tokens"] * 2 * 16 * 4
    assert point["flops"] == pytest.approx(dense["flops"] + routers, rel=1e-12)
    assert [(row["num_experts"], row["experts"]) for row in layers] == [(4, 4), (4, 4)]
    assert point["params"] == dense["params"] + 2 * (16 * 4 + 4)


def test_cost_falls_by_each_expert_that_does_not_run(case):
    flops = []
    for k in (4, 3, 2, 1):
        case.train(active=k)
        (point,), _, _ = evaluate_factors(case.folder / "factors", "factors", MEASURE, RUN)
        flops.append(point["flops"])
        tokens = point["tokens"]
    expert = 2 * tokens * ffn_flops(16, 8, case.name == "gemma")
    for before, after in zip(flops, flops[1:], strict=False):
        assert before - after == pytest.approx(expert, rel=1e-12)


def test_experts_are_neighbouring_neurons(case):
    case.train()
    model, _ = load_model(case.folder / "factors")
    dense, _ = load_model(case.folder / "dense")
    for name, moe in find(model, FactorMoE).items():
        ffn = dense.get_submodule(name)
        assert torch.equal(moe.up.flatten(0, 1), ffn.up.weight)
        assert moe.operating_point == ("top_k", 2)


@pytest.mark.workflow
def test_training_makes_it_better_and_its_routers_follow_the_labels(case):
    case.train()
    before, _ = load_model(case.folder / "factors")
    _, idle = case.train(epochs=12, router_weight=0.0, balance_weight=0.0)
    _, history = case.train(epochs=12, router_weight=1.0)
    after, _ = load_model(case.folder / "factors")
    losses = [quality(m, case.split, 20, CPU)["loss"] for m in (before, after)]
    assert losses[1] < 0.95 * losses[0]
    assert history[-1]["labels"] < 0.8 * idle[-1]["labels"]
    assert list(history[0])[2:6] == ["loss", "task", "labels", "balance"]


def test_routers_learn_by_their_own_losses_alone_and_experts_by_the_task_alone(case):
    plain, _ = case.train(epochs=2, batch_size=50, clip=None, weight_decay=0)
    other, _ = case.train(
        epochs=2, batch_size=50, clip=None, weight_decay=0, router_weight=1.0, balance_weight=0.0
    )
    idle, _ = case.train(
        epochs=2, batch_size=50, clip=None, weight_decay=0, router_weight=0.0, balance_weight=0.0
    )
    fresh, _ = case.train()
    layers = [list(find(m, FactorMoE).values())[0] for m in (plain, other, idle, fresh)]
    routers = [layer.router.map.weight for layer in layers]
    assert torch.equal(routers[2], routers[3])  # no gradient but that of their own losses
    assert not torch.equal(routers[0], routers[3]) and not torch.equal(routers[0], routers[1])
    assert not torch.equal(layers[2].up, layers[3].up)


def test_padding_labels_nothing(tmp_path, monkeypatch):
    make, spec, split = CASES["bert"]
    save_model(tmp_path / "dense", make(), spec)
    read_from(split, monkeypatch)
    seen = []

    def labels(outputs, teacher, z, active):
        seen.append(len(z))
        assert len(outputs) == len(z)
        return teacher_labels(outputs, teacher, z, active)

    monkeypatch.setattr("d2dmoe.methods.factorllm.training.teacher_labels", labels)
    train_factorllm(tmp_path / "dense", config(epochs=1, batch_size=len(split)), RUN)
    assert seen == [int(split.lengths.sum())] * 2


def test_a_number_of_experts_that_does_not_divide_is_refused(case):
    with pytest.raises(ConfigError, match="factorllm.experts = 5 does not divide the 32"):
        case.train(experts=5)


def test_its_layers_are_described_by_no_plain_values(case):
    model, _ = case.train()
    with pytest.raises(ModelError, match="saved by the pipeline alone"):
        describe(model)


def test_the_kernels_run_it_as_dense_experts_do(case):
    model, _ = case.train()
    set_selection(model, "top_k", 2)
    inputs = case.split.batch(case.split.read(torch.arange(len(case.split))), CPU)[0]
    with torch.no_grad(), watch_inputs(model.eval()) as seen:
        model(**inputs)
    for name, moe in find(model, FactorMoE).items():
        with torch.no_grad():
            out = [moe.run(seen[name], backend) for backend in ("dense", "dynamic_k", "auto")]
        torch.testing.assert_close(out[1], out[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out[2], out[0], rtol=1e-4, atol=1e-5)


# The configuration.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("factorllm", None, "the task has no section factorllm"),
        ("factorllm.experts", 5, "factorllm.experts = 5 must divide model.d_ff = 32; allowed: [1"),
        ("factorllm.experts", 2, "active = 3 exceeds factorllm.experts = 2"),
        ("factorllm.epochs", 4, "factorllm.epochs = 4, but the task's"),
        ("neighbours.variants.factors.active", [2, 2], "must not repeat a number"),
        ("neighbours.variants.factors.active", [], "at least 1 item"),
    ],
)
def test_impossible_options_are_refused_before_the_first_job(raw, root, key, value, message):
    assert message in refusal(with_everything(raw), root, key, value)


def test_there_is_a_training_for_each_number_of_experts(raw, root):
    task = load_plan(with_everything(raw), root).task("tiny")
    found = [(stage, cfg.active, cfg.epochs) for (_, (stage, cfg)) in chains(task, "factors")]
    assert found == [("factorllm", 1, 5), ("factorllm", 3, 5)]
