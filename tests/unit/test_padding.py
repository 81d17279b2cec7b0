"""Padding neither costs nor counts: a padded batch is its texts one by one."""

from pathlib import Path

import pytest
import torch
from small import others_later, randomise, values_of, with_experts
from small_language import (
    language_spec,
    make_language,
    make_routed_language,
    make_text_split,
    split_language,
)
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5DenseActDense

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.activity import count_active
from d2dmoe.checkpoint import save_model
from d2dmoe.config.stages import RouterConfig, SparsifyConfig
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.evaluation import cost_on, count_executed, evaluate_dense, evaluate_routed
from d2dmoe.ffn import FFN
from d2dmoe.flops import model_cost
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE, set_selection
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES
from d2dmoe.sparsity import PENALTIES
from d2dmoe.stages import router, sparsify
from d2dmoe.surgery import find
from d2dmoe.training import cross_entropy_loss

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
LENGTHS = (5, 12, 3, 7, 12, 4)
TEXTS = make_text_split(LENGTHS)
PADDED = TEXTS.batch(TEXTS.read(torch.arange(6)), CPU)
ALONE = [TEXTS.batch(TEXTS.read(torch.tensor([i])), CPU) for i in range(6)]


def make_t5() -> nn.Module:
    """A routed encoder–decoder model; T5's FFNs are found by their names."""
    options = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, dropout_rate=0.0, **options))
    randomise(model, scale=0.1)
    for name, block in find(model, T5DenseActDense).items():
        model.set_submodule(name, FFN(block.wi, block.wo, "relu"))
    to_moe(model, [torch.arange(32).view(8, 4)] * 4)
    set_selection(add_routers(model, "regression", 4), "dynamic_k", 0.5)
    return model.eval()


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
        assert one.sums[0] == sum(LENGTHS)
        assert (one.row(), one.sums) == (other.row(), other.sums)


@pytest.mark.workflow
@pytest.mark.parametrize("rule", RULES)
def test_a_point_costs_the_mean_of_its_texts_costs_whatever_the_batch(rule):
    model, rows, samples = make_routed_language("bert"), {}, {}
    for size in (1, 4, 6):
        found = evaluate_routed(model, TEXTS, rule, values_of(rule), size, CPU)
        rows[size], samples[size] = found.points, found.samples["flops"]
    for index, value in enumerate(values_of(rule)):
        set_selection(model, rule, value)
        costs = []
        for inputs, _ in ALONE:
            with torch.no_grad(), count_executed(model) as executed:
                model(**inputs)
            sample = {"input_ids": inputs["input_ids"]}
            counted = {n: e.total for n, e in executed.items()}
            costs.append(model_cost(model, sample).total(counted))
        one, *others = (rows[size][index] for size in (1, 4, 6))
        assert one["flops"] == pytest.approx(sum(costs) / 6, rel=1e-14)
        for size in (1, 4, 6):
            assert samples[size][index].tolist() == pytest.approx(costs)
        assert one["tokens"] == pytest.approx(sum(LENGTHS) / 6)
        for other in others:
            assert other["flops"] == one["flops"] and other["accuracy"] == one["accuracy"]
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.parametrize("rule", others_later(RULES, ["coverage"]))
def test_experts_that_padding_runs_move_no_bit_of_a_point(rule):
    """Nothing reads what comes out for padding."""
    model, values = make_routed_language("bert"), values_of(rule)
    alike = evaluate_routed(model, TEXTS, rule, values, 6, CPU)[:2]
    real = PADDED[0]["attention_mask"].bool()[..., None]

    def hide(_module: nn.Module, _scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask & real if len(mask) == len(real) else mask  # of a sample, for its cost

    for moe in find(model, MoE).values():
        moe.selection.register_forward_hook(hide)
    assert evaluate_routed(model, TEXTS, rule, values, 6, CPU)[:2] == alike


class Inner(nn.Module):
    """Notes the mask that holds where it is called."""

    def __init__(self):
        super().__init__()
        self.seen: list = []
        self.real_tokens = lambda: None

    def forward(self, z):
        self.seen.append(self.real_tokens())
        return z


class Stack(nn.Module):
    """A stack of layers, as an encoder or a decoder."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, z, attention_mask=None):
        return self.inner(z)


class Pair(nn.Module):
    """An encoder and a decoder, called as models of transformers call theirs."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Stack(), Stack()

    def forward(self, z, attention_mask=None, decoder_attention_mask=None):
        self.encoder(z, attention_mask)
        return self.decoder(z, attention_mask=decoder_attention_mask)


class Wrapper(nn.Module):
    """Hands everything on, but the mask in another shape."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, z, **kwargs):
        return self.inner(z, attention_mask=torch.zeros(2, 1, 3, 3))


FIRST, SECOND = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 1], [0, 0, 1]])


def seen_by(module: nn.Module, *args, **kwargs) -> list:
    """The masks that hold in each `Inner`, as lists."""
    inners = list(find(module, Inner).values())
    with watch_padding(module) as real_tokens:
        for inner in inners:
            inner.seen, inner.real_tokens = [], real_tokens
        module(torch.rand(2, 3, 4), *args, **kwargs)
        assert real_tokens() is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    return [None if mask is None else mask.tolist() for inner in inners for mask in inner.seen]


def test_each_part_of_a_model_has_the_mask_that_it_was_called_with():
    first, second = FIRST.bool().tolist(), SECOND.bool().tolist()
    assert seen_by(Stack(), FIRST) == seen_by(Stack(), attention_mask=FIRST.float()) == [first]
    assert seen_by(Stack()) == seen_by(Stack(), None) == [None]
    assert seen_by(Pair(), FIRST) == [first, None]
    assert seen_by(Pair(), FIRST, SECOND) == [first, second]
    assert seen_by(Pair(), decoder_attention_mask=SECOND) == [None, second]
    assert seen_by(Wrapper(Stack()), attention_mask=FIRST) == [first]
    assert seen_by(Wrapper(Stack()), other=FIRST) == [None]


class Torchs(nn.Module):
    """Its layers mark padding, as torch's own do."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, tgt, memory=None, tgt_key_padding_mask=None):
        return self.inner(tgt)


def test_masks_of_padding_are_those_of_real_tokens_turned_round():
    first = FIRST.bool()
    assert seen_by(Torchs(), tgt_key_padding_mask=~first) == [first.tolist()]
    assert seen_by(Torchs()) == [None]
    additive = torch.zeros(2, 3).masked_fill(~first, float("-inf"))  # as torch's layers hand it on
    assert seen_by(Torchs(), tgt_key_padding_mask=additive) == [first.tolist()]
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)
    layer.layers[0].linear1 = nn.Sequential(Inner(), layer.layers[0].linear1)
    assert seen_by(layer.train(), src_key_padding_mask=~first) == [first.tolist()]


def test_a_forward_that_fails_leaves_no_mask_behind():
    model = Stack()
    with watch_padding(model) as real_tokens:
        model.inner.real_tokens = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            model(torch.rand(2, 3, 4), FIRST)
        assert real_tokens() is None


def test_values_of_real_tokens_are_found_in_every_layout():
    values, real = torch.rand(2, 3, 4), FIRST.bool()
    expected = values[real]
    assert torch.equal(without_padding(values, None), values.flatten(0, 1))
    for layout in (values, values.flatten(0, 1), values.transpose(0, 1)):
        assert torch.equal(without_padding(layout, real), expected)
    longer = torch.tensor([[False, True, True, True, False], [True, False, True, True, True]])
    assert torch.equal(without_padding(values, longer), expected)  # two tokens are cached
    for pooled in (torch.rand(5, 4), torch.rand(2, 5, 4)):  # of other tokens than the mask's
        assert torch.equal(without_padding(pooled, real), pooled.flatten(0, -2))


@pytest.mark.parametrize("padded", ["encoder", "decoder", "both", "none"])
def test_encoder_and_decoder_count_their_own_tokens(padded):
    model = make_t5()
    ids, lengths = torch.arange(20).view(2, 10), {"encoder": 20, "decoder": 12}
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    if padded in ("encoder", "both"):
        inputs["attention_mask"] = (torch.arange(10) < 7).expand(2, 10).long()
        lengths["encoder"] = 14
    if padded in ("decoder", "both"):
        inputs["decoder_attention_mask"] = (torch.arange(6) < 4).expand(2, 6).long()
        lengths["decoder"] = 8
    with torch.no_grad(), count_executed(model) as executed:
        model(**inputs)
    assert {name.split(".")[0]: e.sums[0] for name, e in executed.items()} == lengths


def test_a_dense_model_costs_the_mean_of_its_texts_costs_whatever_the_batch():
    model = make_language("bert")
    one, other = (evaluate_dense(model, TEXTS, size, CPU).points[0] for size in (1, 6))
    each = [model_cost(model, {"input_ids": inputs["input_ids"]}).dense for inputs, _ in ALONE]
    assert one["flops"] == other["flops"] == pytest.approx(sum(each) / 6, rel=1e-14)
    assert cost_on(model, TEXTS, CPU).tokens == one["tokens"] == sum(LENGTHS) / 6
    losses = [cross_entropy_loss(model(**x).logits, y).item() for x, y in ALONE]
    assert other["loss"] == pytest.approx(sum(losses) / 6, rel=1e-5)
