"""Padding neither costs nor counts: a padded batch is its texts one by one."""

from pathlib import Path

import pytest
import torch
from small import values_of, with_experts
from small_language import (
    language_spec,
    make_language,
    make_routed_language,
    make_text_split,
    split_language,
)

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.activity import count_active
from d2dmoe.checkpoint import save_model
from d2dmoe.config.stages import RouterConfig, SparsifyConfig
from d2dmoe.evaluate import cost_on, count_executed, evaluate_dense, evaluate_routed
from d2dmoe.flops import model_cost
from d2dmoe.jobs.run import Run
from d2dmoe.moe import set_selection
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES
from d2dmoe.sparsity import PENALTIES
from d2dmoe.stages import router, sparsify
from d2dmoe.training import cross_entropy_loss

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
LENGTHS = (5, 12, 3, 7, 12, 4)
TEXTS = make_text_split(LENGTHS)
PADDED = TEXTS.batch(TEXTS.read(torch.arange(6)), CPU)
ALONE = [TEXTS.batch(TEXTS.read(torch.tensor([i])), CPU) for i in range(6)]


def per_token(values: list) -> float:
    """Mean over tokens of means of the texts."""
    pairs = zip(LENGTHS, values, strict=True)
    return sum(length * float(value) for length, value in pairs) / sum(LENGTHS)


def saved(path: Path, split: bool) -> Path:
    model = make_language("bert", "relu")
    spec = language_spec("bert", activation="relu")
    if split:
        model, spec = split_language(model), with_experts(spec)
    save_model(path, model, spec)
    return path


def losses_of(stage: str, monkeypatch) -> list:
    """Where a stage's losses end up: of the padded batch, then of each text. It trains nothing."""
    seen = []

    def see(_trained, losses, *_, **__):
        with torch.no_grad():
            seen.extend(losses(batch, 0.5) for batch in (PADDED, *ALONE))
        return []

    module, name = {"sparsify": (sparsify, "fit_model"), "router": (router, "fit_part")}[stage]
    monkeypatch.setattr(module, name, see)
    return seen


@pytest.mark.parametrize("mode", PENALTIES)
def test_the_penalty_is_a_mean_over_tokens_and_the_task_loss_one_over_texts(
    mode, monkeypatch, tmp_path
):
    seen = losses_of("sparsify", monkeypatch)
    cfg = SparsifyConfig(mode=mode, alpha=0.1, epochs=1, lr=0.1)
    sparsify.sparsify(saved(tmp_path / "model", split=False), cfg, RUN)
    padded, *alone = seen
    assert padded["sparsity"] == pytest.approx(per_token([x["sparsity"] for x in alone]), rel=1e-5)
    assert padded["task"] == pytest.approx(sum(float(x["task"]) for x in alone) / 6, rel=1e-5)


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_the_loss_of_routers_is_a_mean_over_tokens(kind, monkeypatch, tmp_path):
    seen = losses_of("router", monkeypatch)
    cfg = RouterConfig(kind=kind, width=4, epochs=1, lr=0.1)
    router.train_routers(saved(tmp_path / "model", split=True), cfg, RUN)
    padded, *alone = (losses["loss"] for losses in seen)
    assert padded > 0 and padded == pytest.approx(per_token(alone), rel=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_active_neurons_are_counted_of_tokens_only(activation):
    model = make_language("bert", activation)
    padded, alone = count_active(model, [PADDED[0]]), count_active(model, [x for x, _ in ALONE])
    assert padded.sum(1).tolist() == [sum(LENGTHS)] * 2
    assert torch.equal(padded, alone)


@pytest.mark.parametrize(("rule", "value"), [(r, v) for r in RULES for v in values_of(r)])
def test_executed_experts_are_counted_of_tokens_only(rule, value):
    model = make_routed_language("bert")
    set_selection(model, rule, value)
    with torch.no_grad(), count_executed(model) as padded:
        model(**PADDED[0])
    with torch.no_grad(), count_executed(model) as alone:
        for inputs, _ in ALONE:
            model(**inputs)
    for one, other in zip(padded.values(), alone.values(), strict=True):
        assert one.tokens == sum(LENGTHS)
        assert vars(one) == vars(other)


@pytest.mark.parametrize("rule", RULES)
def test_a_point_costs_the_mean_of_its_texts_costs_whatever_the_batch(rule):
    model, rows = make_routed_language("bert"), {}
    for size in (1, 4, 6):
        rows[size], _ = evaluate_routed(model, TEXTS, rule, values_of(rule), size, CPU)
    for index, value in enumerate(values_of(rule)):
        set_selection(model, rule, value)
        total = 0
        for inputs, _ in ALONE:
            with torch.no_grad(), count_executed(model) as executed:
                model(**inputs)
            sample = {"input_ids": inputs["input_ids"]}
            total += model_cost(model, sample).total({n: e.total for n, e in executed.items()})
        one, *others = (rows[size][index] for size in (1, 4, 6))
        assert one["flops"] == pytest.approx(total / 6, rel=1e-14)
        assert one["tokens"] == pytest.approx(sum(LENGTHS) / 6)
        for other in others:
            assert other["flops"] == one["flops"] and other["accuracy"] == one["accuracy"]
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_a_dense_model_costs_the_mean_of_its_texts_costs_whatever_the_batch():
    model = make_language("bert")
    one, other = (evaluate_dense(model, TEXTS, size, CPU)[0] for size in (1, 6))
    each = [model_cost(model, {"input_ids": inputs["input_ids"]}).dense for inputs, _ in ALONE]
    assert one["flops"] == other["flops"] == pytest.approx(sum(each) / 6, rel=1e-14)
    assert cost_on(model, TEXTS, CPU).tokens == one["tokens"] == sum(LENGTHS) / 6
    losses = [cross_entropy_loss(model(**x).logits, y).item() for x, y in ALONE]
    assert other["loss"] == pytest.approx(sum(losses) / 6, rel=1e-5)
