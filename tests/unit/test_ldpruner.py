"""Laws of LD-Pruner: nothing removed is the base, the least goes first, what is gone is free."""

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from small import make_dense, others_later, read_from
from small_cases import CASES
from small_config import refusal, with_everything
from small_language import CAUSAL, make_language
from torch import nn

from d2dmoe.checkpoint import load_dense_model, load_model, save_model
from d2dmoe.errors import CheckpointError, ModelError
from d2dmoe.ffn import FFN
from d2dmoe.formulas import ffn_flops
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.layers import describe
from d2dmoe.methods.ldpruner.options import LDPrunerConfig
from d2dmoe.methods.ldpruner.ranking import KINDS, Operator, least, shifts
from d2dmoe.methods.ldpruner.training import prune_operators
from d2dmoe.models import ARCHITECTURES
from d2dmoe.models.build import head_of, leave_out
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import chains
from d2dmoe.quality import count_parameters, quality
from d2dmoe.stages.evaluate import evaluate_dense
from d2dmoe.stand_ins import NoAttention
from d2dmoe.surgery import find, watch

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
MEASURE = {"split": "test", "batch_size": 20, "values": []}
NORM_FIRST = ["vit", "gpt2", "gemma"]
PARTS = [(block, sublayer) for block in (0, 1) for sublayer in ("attention", "ffn")]


@pytest.fixture(params=others_later(CASES, ["bert"]))
def case(request, tmp_path, monkeypatch) -> SimpleNamespace:
    """A saved dense model of two blocks, and the data that all is read from."""
    make, spec, split = CASES[request.param]
    save_model(tmp_path / "dense", make(), spec)
    read_from(split, monkeypatch)

    def prune(removed: int, **changes) -> nn.Module:
        options = {"epochs": 0, "lr": 0.01, "batch_size": 8, "removed": removed} | changes
        model, own, _ = prune_operators(tmp_path / "dense", LDPrunerConfig(**options), RUN)
        save_model(tmp_path / "pruned", model, own)
        return load_model(tmp_path / "pruned")[0]

    inputs, _ = split.batch(split.read(torch.arange(len(split))), CPU)
    dense, _ = load_dense_model(tmp_path / "dense")
    return SimpleNamespace(
        folder=tmp_path,
        prune=prune,
        split=split,
        inputs=inputs,
        name=request.param,
        dense=dense,
        scores=lambda model: shifts(request.param, model, [inputs], 10),
    )


def same(model: nn.Module, other: nn.Module, inputs) -> bool:
    with torch.no_grad():
        return torch.equal(logits_of(model, inputs), logits_of(other, inputs))


# Hand-made cases.


def scores_of(*values: float) -> dict[Operator, float]:
    """Of the attention, FFN and block of each of some blocks."""
    blocks = range(len(values) // 3)
    operators = [Operator(block, kind) for block in blocks for kind in KINDS]
    return dict(zip(operators, values, strict=True))


@pytest.mark.parametrize(
    ("values", "count", "gone"),
    [
        ((3, 1, 9, 2, 4, 8), 0, []),
        ((3, 1, 9, 2, 4, 8), 1, [(0, "ffn")]),
        ((3, 1, 9, 2, 4, 8), 2, [(0, "ffn"), (1, "attention")]),
        ((3, 1, 9, 2, 4, 8), 3, [(0, "attention"), (0, "ffn"), (1, "attention")]),
        ((3, 1, 9, 2, 4, 8), 4, [(0, "attention"), (0, "ffn"), (1, "attention")]),
        ((5, 6, 1, 2, 4, 8), 2, [(0, "attention"), (0, "ffn")]),  # a block is two
        ((5, 6, 1, 2, 4, 8), 1, [(1, "attention")]),  # so it is too much
        ((5, 6, 1, 2, 4, 8), 3, [(0, "attention"), (0, "ffn"), (1, "attention")]),
        ((9, 1, 2, 3, 4, 8), 2, [(0, "attention"), (0, "ffn")]),  # what is left of a block is one
        ((9, 1, 8, 7, 0, 8), 2, [(1, "attention"), (1, "ffn")]),  # an FFN stays
    ],
)
def test_the_operators_of_least_shift_leave(values, count, gone):
    assert sorted(least(scores_of(*values), count)) == gone


# The stage.


def test_removing_nothing_is_the_base_exactly(case):
    pruned = case.prune(0)
    assert same(pruned, case.dense, case.inputs)
    assert pruned.state_dict().keys() == case.dense.state_dict().keys()
    path = case.folder
    before, after = (evaluate_dense(path / x, "dense", MEASURE, RUN) for x in ("dense", "pruned"))
    assert before.points == after.points


def test_ranking_leaves_the_model_as_it_is(case):
    before = dict(case.dense.named_modules())
    case.scores(case.dense)
    assert dict(case.dense.named_modules()) == before


def test_a_score_is_the_shift_of_means_and_deviations_of_what_the_head_reads(case):
    scores = case.scores(case.dense)
    assert list(scores) == [Operator(block, kind) for block in (0, 1) for kind in KINDS]
    for operator, score in scores.items():
        model, _ = load_dense_model(case.folder / "dense")
        spreads = []
        for parts in ([], operator.parts):
            for block, sublayer in parts:
                leave_out(case.name, model, block, sublayer)
            with torch.no_grad(), watch({"": head_of(case.name, model)}, lambda _m, z, _o: z) as z:
                model(**case.inputs)
            vectors = z[""].flatten(0, -2)
            spreads.append((vectors.mean(0), vectors.std(0, correction=0)))
        expected = sum((a - b).norm().item() for a, b in zip(*spreads, strict=True))
        assert score == pytest.approx(expected, rel=1e-4) and score > 0


@pytest.mark.parametrize("place", PARTS, ids=str)
def test_an_operator_that_does_nothing_is_found_first(case, place):
    model, spec = load_dense_model(case.folder / "dense")
    leave_out(case.name, model, *place)
    scores = case.scores(model)
    first = min(scores, key=scores.__getitem__)
    assert first == Operator(place[0], (place[1],)) and scores[first] == 0
    assert least(scores, 1) == {place}


@pytest.mark.parametrize("case", others_later(NORM_FIRST, ["gpt2"]), indirect=True)
def test_an_ffn_that_adds_nothing_leaves_first_and_nothing_changes(case):
    """Where the norm comes after, as BERT's, an FFN that adds nothing still normalises."""
    ffn = list(find(case.dense, FFN).values())[1]
    with torch.no_grad():
        for parameter in ffn.down.parameters():
            parameter.zero_()
    save_model(case.folder / "dense", case.dense, CASES[case.name][1])
    pruned = case.prune(1)
    assert same(pruned, case.dense, case.inputs)
    assert [len(find(m, FFN)) for m in (pruned, case.dense)] == [1, 2]


def attention_flops(name: str, tokens: int) -> int:
    """Of d_model 16 and 2 heads; Gemma's keys and values have one of 8."""
    d_kv = 8 if name == "gemma" else 16
    return 2 * tokens * 16 * (2 * 16 + 2 * d_kv) + 2 * 2 * tokens**2 * 16


@pytest.mark.parametrize("count", others_later([1, 2, 3], [2]))
def test_what_is_gone_costs_nothing(case, count):
    pruned = case.prune(count)
    (dense,), _, _ = evaluate_dense(case.folder / "dense", "dense", MEASURE, RUN)
    (point,), layers, samples = evaluate_dense(case.folder / "pruned", "dense", MEASURE, RUN)
    part = load_model(case.folder / "pruned")[1].parts["ldpruner"]
    assert len(part["attention"]) + len(part["ffn"]) == count and len(part["ffn"]) < 2
    lengths = [5] if case.name == "vit" else [12]
    lengths = case.split.lengths.tolist() if case.name == "bert" else lengths
    saved = [
        len(part["attention"]) * attention_flops(case.name, n)
        + len(part["ffn"]) * n * ffn_flops(16, 32, case.name == "gemma")
        for n in lengths
    ]
    assert dense["flops"] - point["flops"] == pytest.approx(sum(saved) / len(saved), rel=1e-12)
    assert samples["flops"].mean().item() == pytest.approx(point["flops"], rel=1e-6)
    assert layers is None and point["tokens"] == dense["tokens"]
    assert point["params"] == count_parameters(pruned) < dense["params"]


@pytest.mark.parametrize("place", PARTS, ids=str)
def test_a_sublayer_leaves_with_its_norm_and_nothing_else(case, place):
    before = count_parameters(case.dense)
    leave_out(case.name, case.dense, *place)
    gemma = case.name == "gemma"
    if place[1] == "ffn":
        own = 16 * 32 * 3 if gemma else 16 * 32 * 2 + 32 + 16
    else:
        own = 16 * (2 * 16 + 2 * 8) if gemma else 16 * 4 * 16 + 4 * 16
    norm = 16 if gemma else 2 * 16
    assert before - count_parameters(case.dense) == own + norm


def test_a_block_without_both_gives_its_input(case):
    for sublayer in ("attention", "ffn"):
        leave_out(case.name, case.dense, 1, sublayer)
    blocks = find(case.dense, import_module(ARCHITECTURES[case.name].module).BLOCK)
    with torch.no_grad(), watch(blocks, lambda _block, z, out: (z, out)) as seen:
        case.dense(**case.inputs)
    assert [torch.equal(*own) for own in seen.values()] == [False, True]


def test_training_makes_up_for_what_is_gone(case):
    before = case.prune(2)
    after = case.prune(2, epochs=12)
    losses = [quality(m, case.split, 20, CPU)["loss"] for m in (before, after)]
    assert losses[1] < 0.95 * losses[0]


def test_a_model_is_pruned_once(case):
    model, spec = load_dense_model(case.folder / "dense")
    save_model(case.folder / "dense", model, spec.with_part("ldpruner", attention=[], ffn=[]))
    with pytest.raises(CheckpointError, match="ldpruner has made already"):
        case.prune(1)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_without_its_first_attention_generates_with_a_cache_as_without(name):
    model = make_language(name)
    leave_out(name, model, 0, "attention")
    assert find(model, NoAttention)
    prompt = torch.tensor([[3, 9, 4]])
    found = [
        model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    ]
    assert torch.equal(*found)


def test_a_model_without_a_sublayer_is_described_by_no_plain_values(case):
    describe(case.dense)
    leave_out(case.name, case.dense, 1, "attention")
    with pytest.raises(ModelError, match="saved by the pipeline alone"):
        describe(case.dense)


def test_an_architecture_that_does_not_say_how_is_refused(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "vit", replace(ARCHITECTURES["vit"], removable=False))
    with pytest.raises(CheckpointError, match="'vit' cannot be left out, those of bert, gpt2"):
        shifts("vit", make_dense(), [], 10)


# The configuration.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ldpruner", None, "the task has no section ldpruner"),
        ("ldpruner.epochs", 5, "ldpruner.epochs = 5 must be below sparsify.epochs + router.epochs"),
        ("neighbours.variants.leaner.removed", [4], "removed = 4 leaves no FFN; a model of 2"),
        ("neighbours.variants.leaner.removed", [1, 1], "must not repeat a number"),
        ("neighbours.variants.leaner.removed", [], "at least 1 item"),
        ("neighbours.variants.leaner.removed", [-1], "greater than or equal to 0"),
    ],
)
def test_impossible_options_are_refused_before_the_first_job(raw, root, key, value, message):
    assert message in refusal(with_everything(raw), root, key, value)


def test_there_is_a_fine_tuning_for_each_number_which_takes_its_passes_from_the_training(raw, root):
    task = load_plan(with_everything(raw), root).task("tiny")
    found = [[(stage, cfg.epochs) for stage, cfg in chain[1:]] for chain in chains(task, "leaner")]
    assert found == [[("finetune", 4), ("ldpruner", 1)]] * 2
    assert [chain[-1][1].removed for chain in chains(task, "leaner")] == [1, 2]
