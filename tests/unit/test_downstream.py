"""Laws of BoolQ at compute budgets: budgets are kept, answers are those of the log-likelihoods."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from small import others_later
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn
from unit.small import randomise, with_experts, with_routers
from unit.small_texts import make_texts

from d2dmoe.checkpoint import load_model, save_model
from d2dmoe.config.data import data_config
from d2dmoe.config.downstream import BoolQConfig
from d2dmoe.config.model import GemmaConfig, GPT2Config
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.data.prepare import prepare
from d2dmoe.data.splits import open_split
from d2dmoe.data.tokenizer import make_tokenizer
from d2dmoe.downstream import BoolQ, Point, calibrate, executed_ratio, load_boolq, record_lengths
from d2dmoe.errors import ConfigError, DataError, UserError
from d2dmoe.evaluation import count_executed, evaluate_dense, evaluate_routed
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.flops import model_cost
from d2dmoe.inputs import logits_of
from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import Run
from d2dmoe.models.build import create_model
from d2dmoe.moe import set_selection
from d2dmoe.plan.plan import load_plan
from d2dmoe.selection_rules import RULES
from d2dmoe.spec import ModelSpec
from d2dmoe.stages.downstream import boolq
from d2dmoe.surgery import find

CPU = torch.device("cpu")
POSITIONS = 64
SIZES = {"layers": 2, "d_model": 16, "heads": 2, "d_ff": 64, "positions": POSITIONS}
MODELS = {
    "gpt2": GPT2Config(architecture="gpt2", **SIZES),
    "gemma": GemmaConfig(architecture="gemma", **SIZES, head_dim=8, key_value_heads=1),
}
EXPERTS = 16  # of a layer
VALUES = {
    name: [1, 4, EXPERTS] if rule.whole else [0.0, 0.2, 0.3, 0.6, 1.0]
    for name, rule in RULES.items()
}


# Calibration


def curve(cost, values) -> list[Point]:
    return [Point(value, cost(value)) for value in values]


@pytest.mark.parametrize("budget", [1.0, 0.9, 0.6, 0.5, 0.3])
@pytest.mark.parametrize(
    "cost",
    [
        lambda tau: 1.05 - 0.8 * tau,  # straight
        lambda tau: 0.25 + 0.8 * (1 - tau) ** 4,  # convex, as costs are
        lambda tau: 1.05 - 0.8 * tau**4,  # concave, where a straight line exceeds the budget
        lambda p: 0.25 + 0.8 * p**2,  # rising: coverage
        lambda tau: 0.25 + 0.1 * round(8 * (1 - tau)),  # in steps
    ],
)
def test_a_budget_is_kept_and_nearly_used(cost, budget):
    point = calibrate(curve(cost, [0.0, 0.2, 0.5, 1.0]), budget, cost)
    assert point.ratio == cost(point.value) <= budget
    assert point.ratio >= 0.8 * budget


def test_no_measurement_is_made_where_a_point_uses_the_budget_already():
    points = [Point(0.0, 1.1), Point(0.1, 0.795), Point(1.0, 0.3)]
    assert calibrate(points, 0.8, measure=pytest.fail) == points[1]
    assert calibrate(points, 2.0, measure=pytest.fail) == points[0]


def test_top_k_takes_the_largest_k_within_the_budget():
    points = [Point(k, 0.2 + 0.1 * k) for k in (8, 1, 2, 4)]
    assert calibrate(points, 0.7, None).value == 4
    assert calibrate(points, 0.59, None).value == 2


@pytest.mark.parametrize("measure", [None, lambda tau: 1 - tau])
def test_a_budget_below_the_cheapest_point_has_no_operating_point(measure):
    assert calibrate([Point(0.0, 1.0), Point(0.7, 0.3)], 0.29, measure) is None


def test_costs_that_are_not_monotone_still_keep_the_budget():
    points = [Point(0.0, 1.0), Point(0.1, 0.5), Point(0.2, 0.62), Point(1.0, 0.2)]
    values, ratios = [p.value for p in points], [p.ratio for p in points]
    found = calibrate(points, 0.6, lambda tau: float(np.interp(tau, values, ratios)))
    assert 0.594 <= found.ratio <= 0.6


# Questions


def questions(count: int, words: int = 12) -> list[dict]:
    """Made-up questions in BoolQ's format; answers alternate."""
    passages = make_texts(count, seed=3, words=words)
    return [
        {"question": f"is {text.split()[0]} a house", "passage": text, "label": i % 2}
        for i, text in enumerate(passages)
    ]


def save(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_are_read_as_they_are_published(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = questions(4)
    published = [  # google/boolq has the answer, SuperGLUE's a label
        {"question": r["question"], "passage": r["passage"], "answer": bool(r["label"])}
        for r in rows
    ]
    save(tmp_path / "a.jsonl", [r | {"idx": i} for i, r in enumerate(rows)])
    save(tmp_path / "b.jsonl", published)
    pq.write_table(pa.Table.from_pylist(published), tmp_path / "c.parquet")
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(published), tmp_path / "hub/validation.parquet")
    for source in ("path:a.jsonl", "path:b.jsonl", "path:c.parquet", "hub:hub"):
        assert load_boolq(source, tmp_path) == rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has 0 questions; at least 2 are needed"),
        ([{"question": "q", "passage": "p"}] * 2, r"row 0 .*no column answer.*question, passage"),
        ([{"question": "q", "label": 1}] * 2, "no column passage"),
        ([{"question": "q", "passage": " ", "label": 1}] * 2, "the passage is no text, or empty"),
        ([{"question": None, "passage": "p", "label": 1}] * 2, "the question is no text"),
        ([{"question": "q", "passage": "p", "label": -1}] * 2, "label is -1; allowed are false"),
        ([{"question": "q", "passage": "p", "answer": None}] * 2, "answer is None; allowed"),
    ],
)
def test_a_set_of_another_form_is_refused(tmp_path, rows, message):
    save(tmp_path / "set.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_boolq("path:set.jsonl", tmp_path)


@pytest.mark.parametrize("name", ["damaged.jsonl", "damaged.parquet", "missing.jsonl"])
def test_a_set_that_cannot_be_read_is_refused(tmp_path, name):
    if not name.startswith("missing"):
        (tmp_path / name).write_text('{"question": ')
    with pytest.raises(DataError, match=f"BoolQ set path:{name} cannot be read"):
        load_boolq(f"path:{name}", tmp_path)


# Configuration


@pytest.mark.parametrize(
    "change",
    [
        {"source": "vendored:boolq"},
        {"source": "path:"},
        {"budgets": []},
        {"budgets": [0.0]},
        {"budgets": [1.1]},
        {"budgets": [0.5, 0.5]},
        {"variants": []},
        {"limit": 1},
    ],
)
def test_impossible_values_are_refused(change):
    with pytest.raises(ValidationError):
        BoolQConfig(**{"variants": ["d2dmoe"], **change})


@pytest.fixture
def language(raw, root) -> dict:
    """The minimal configuration for a language model that asks for BoolQ."""
    save(root / "boolq.jsonl", questions(2))
    save(root / "corpus.jsonl", [{"text": text} for text in make_texts(4, seed=0)])
    task = raw["tasks"]["tiny"]
    tokenizer = {"source": "train", "vocab_size": 300}
    data = {"kind": "corpus", "length": 8, "validation": 1, "test": 1, "tokenizer": tokenizer}
    task["data"] = {"source": "path:corpus.jsonl", **data}
    task["model"] = {"architecture": "gpt2", **SIZES}
    del task["figures"]["load_maps"]
    task["boolq"] = {"source": "path:boolq.jsonl", "variants": ["sparse", "moefication"]}
    return raw


def test_the_budgets_are_the_papers_by_default(language, root):
    cfg = load_plan(language, root).task("tiny").boolq
    assert cfg.budgets == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25, 0.1] and cfg.limit is None


def test_boolq_of_images_is_refused(raw, root):
    raw["tasks"]["tiny"]["boolq"] = {"variants": ["sparse"]}
    with pytest.raises(ConfigError, match="boolq needs a language model"):
        load_plan(raw, root)


def test_an_unknown_variant_is_refused(language, root):
    language["tasks"]["tiny"]["boolq"]["variants"] = ["sprase"]
    with pytest.raises(ConfigError, match="boolq.variants names the variant 'sprase'; defined"):
        load_plan(language, root)


@pytest.mark.parametrize("name", ["other.jsonl", "boolq.csv"])
def test_a_missing_set_is_found_before_any_job(language, root, name):
    (root / "boolq.csv").touch()
    language["tasks"]["tiny"]["boolq"]["source"] = f"path:{name}"
    with pytest.raises(DataError, match=r"no such .jsonl or .parquet file"):
        load_plan(language, root)


# Models


def make(name: str, about: dict) -> tuple[nn.Module, ModelSpec]:
    """A dense model whose weights tell texts apart."""
    options, model = create_model(MODELS[name], about)
    return randomise(model), ModelSpec(architecture=name, options=options, data=about)


def convert(model: nn.Module, kind: str = "regression") -> nn.Module:
    torch.manual_seed(0)
    ffns = find(model, FFN).values()
    to_moe(model, [assign_neurons(f.up.weight, EXPERTS, "random", 0) for f in ffns])
    return randomise_routers(add_routers(model, kind, 4).eval())


def randomise_routers(model: nn.Module) -> nn.Module:
    for name, module in model.named_modules():
        if name.endswith("router"):
            randomise(module, seed=1, scale=0.7)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A prepared corpus, its tokenizer, and a dense and a converted model of each architecture."""
    root = tmp_path_factory.mktemp("world")
    (root / "set").mkdir()
    for part, seed, count in (("train", 0, 60), ("test", 1, 10)):
        rows = [{"text": f"{text} yes no"} for text in make_texts(count, seed)]
        save(root / "set" / f"{part}.jsonl", rows)
    cfg = {"kind": "corpus", "source": "path:set", "length": 16, "validation": 8}
    cfg = data_config(cfg | {"tokenizer": {"source": "train", "vocab_size": 300}})
    data, tokenizer = root / "data", root / "data/tokenizer.json"
    make_tokenizer(cfg, root, tokenizer)
    prepare(cfg, root, data, tokenizer)
    split = open_split(data, "validation")
    for name in MODELS:
        model, spec = make(name, split.about)
        save_model(root / name / "dense.safetensors", model, spec)
        write_rows(root / name / "dense.csv", evaluate_dense(model, split, 8, CPU).points)
        routed = convert(model)
        spec = with_routers(with_experts(spec, EXPERTS), width=4)
        save_model(root / name / "routed.safetensors", routed, spec)
        for rule, values in VALUES.items():
            points, *_ = evaluate_routed(routed, split, rule, values, 8, CPU)
            write_rows(root / name / f"{rule}.csv", points)
    return SimpleNamespace(root=root, data=data, tokenizer=tokenizer, split=split)


def load(world, name: str, kind: str) -> nn.Module:
    return load_model(world.root / name / f"{kind}.safetensors")[0]


@pytest.mark.parametrize("name", others_later(MODELS, ["gpt2"]))
def test_the_executed_cost_is_that_of_each_sample_alone(world, name):
    model, lengths = load(world, name, "routed"), [5, 9, 9, 23]
    set_selection(model, "top_k", 3)
    samples = [torch.randint(2, 200, (1, n)) for n in lengths]
    with torch.no_grad(), count_executed(model) as executed, record_lengths(model) as seen:
        for sample in samples:
            model(sample)
    totals = {layer: e.total for layer, e in executed.items()}
    assert seen == lengths
    costs = [model_cost(model, {"input_ids": sample}) for sample in samples]
    spent = [c.total(dict.fromkeys(c.layers, 3 * n)) for c, n in zip(costs, lengths, strict=True)]
    expected = sum(spent) / sum(c.dense for c in costs)
    assert executed_ratio(model, totals, lengths) == pytest.approx(expected, rel=1e-9)


def test_without_lm_eval_the_extra_is_named(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(UserError, match="uv run --extra lm-eval"):
        BoolQ(load(world, "gpt2", "dense"), world.tokenizer, questions(2))


# With lm-eval


@pytest.fixture
def lm_eval():
    reason = "lm-eval is not installed: uv run --extra lm-eval pytest"
    return pytest.importorskip("lm_eval", reason=reason)


def asked(world, model: nn.Module, rows: list[dict]) -> tuple[dict, list[float]]:
    """What BoolQ gives, and the log-likelihoods of each question's "no" and "yes"."""
    task = BoolQ(model, world.tokenizer, rows)
    result = task.ask()
    by_question = sorted(task.task.instances, key=lambda i: (i.doc_id, i.idx))
    return result, [i.resps[0][0] for i in by_question]


def by_hand(world, model: nn.Module, row: dict) -> list[float]:
    """Log-likelihoods of " no" and " yes"; a prompt that is too long loses its beginning."""
    tokenizer = Tokenizer.from_file(str(world.tokenizer))
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    found = []
    for answer in (" no", " yes"):
        ids = tokenizer.encode(prompt + answer).ids
        count = len(ids) - len(tokenizer.encode(prompt).ids)
        ids = torch.tensor(ids[-POSITIONS - 1 :])
        with torch.no_grad():
            logits = logits_of(model, {"input_ids": ids[None, :-1]})[0, -count:]
        found.append(float(logits.log_softmax(-1).gather(1, ids[-count:, None]).sum()))
    return found


@pytest.mark.parametrize("words", [6, 60])  # 60: longer than the model's positions
@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_the_answers_are_those_of_the_log_likelihoods_by_hand(lm_eval, world, name, tau, words):
    model, rows = load(world, name, "routed"), questions(5, words)
    set_selection(model, "dynamic_k", tau)
    expected = [by_hand(world, model, row) for row in rows]
    right = [r | {"label": int(e[1] > e[0])} for r, e in zip(rows, expected, strict=True)]
    wrong = [r | {"label": 1 - r["label"]} for r in right]
    result, likelihoods = asked(world, model, right)
    assert likelihoods == pytest.approx(np.ravel(expected).tolist(), abs=1e-4)
    assert (result["accuracy"], result["stderr"], result["samples"]) == (1, 0, 5)
    assert asked(world, model, [*wrong[:2], *right[2:]])[0]["accuracy"] == pytest.approx(0.6)


@pytest.mark.parametrize("name", MODELS)
def test_at_tau_0_boolq_is_the_dense_models(lm_eval, world, name):
    rows, routed = questions(12), load(world, name, "routed")
    dense, expected = asked(world, load(world, name, "dense"), rows)
    set_selection(routed, "dynamic_k", 0.0)
    found, likelihoods = asked(world, routed, rows)
    assert likelihoods == pytest.approx(expected, abs=1e-4)
    assert dense["flops_ratio"] == 1 < found["flops_ratio"]  # the routers' own cost
    assert found | {"flops_ratio": 1.0} == dense


def test_the_names_of_special_tokens_in_a_text_are_text(lm_eval, world):
    task = BoolQ(load(world, "gpt2", "dense"), world.tokenizer, questions(2))
    assert len(task.lm.tok_encode("a <|endoftext|> b")) > 5


def test_special_tokens_are_added_as_the_tokenizer_says(lm_eval, world, tmp_path):
    plain = Tokenizer.from_file(str(world.tokenizer))
    start = ("<|endoftext|>", plain.token_to_id("<|endoftext|>"))
    first = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[start])
    for name, processor in (("no", plain.post_processor), ("yes", first)):
        plain.post_processor = processor
        plain.save(str(tmp_path / f"{name}.json"))
        task = BoolQ(load(world, "gemma", "dense"), tmp_path / f"{name}.json", questions(2))
        assert task.lm.tok_encode("a house") == plain.encode("a house").ids
        assert (task.lm.tok_encode("a house")[0] == start[1]) == (name == "yes")


def test_a_limit_asks_the_first_questions_and_asking_again_gives_the_same(lm_eval, world):
    rows = questions(8)
    task = BoolQ(load(world, "gpt2", "dense"), world.tokenizer, rows)
    first = task.ask(limit=3)
    assert first["samples"] == 3 and first == task.ask(limit=3)
    n, a = 3, first["accuracy"]
    assert first["stderr"] == pytest.approx(math.sqrt(a * (1 - a) / (n - 1)))
    assert first == asked(world, load(world, "gpt2", "dense"), rows[:3])[0]


def run_stage(world, name: str, model: str, knob: str, budgets: list[float]) -> list[dict]:
    save(world.root / "boolq.jsonl", questions(6))
    folder = world.root / name
    return boolq(
        folder / f"{model}.safetensors",
        world.tokenizer,
        folder / f"{knob}.csv",
        folder / "dense.csv",
        {
            "source": f"path:{world.root}/boolq.jsonl",
            "budgets": budgets,
            "limit": None,
            "batch_size": 8,
        },
        Run(seed=0, device=CPU, data=world.data),
    )


@pytest.mark.parametrize("knob", VALUES)
@pytest.mark.parametrize("name", MODELS)
def test_budgets_are_kept_on_validation_data(lm_eval, world, name, knob):
    budgets = [1.0, 0.9, 0.8, 0.01]
    rows = run_stage(world, name, "routed", knob, budgets)
    assert [row["budget"] for row in rows] == budgets and {row["knob"] for row in rows} == {knob}
    model, dense = load(world, name, "routed"), load(world, name, "dense")
    dense_flops = evaluate_dense(dense, world.split, 8, CPU).points[0]["flops"]
    for row in rows[:-1]:
        (point,), *_ = evaluate_routed(model, world.split, knob, [row["knob_value"]], 8, CPU)
        measured = point["flops"] / dense_flops
        assert row["flops_ratio_validation"] == pytest.approx(measured, rel=1e-6)
        assert measured <= row["budget"] * (1 + 1e-9)
        assert row["samples"] == 6 and 0 < row["flops_ratio"] < 1.1
        if RULES[knob].whole:
            assert row["knob_value"] in VALUES[knob]
    values = [row["flops_ratio_validation"] for row in rows[:-1]]
    assert values == sorted(values, reverse=True)


def test_a_budget_that_cannot_be_met_gives_an_empty_row(lm_eval, world, tmp_path):
    rows = run_stage(world, "gpt2", "routed", "dynamic_k", [1.0, 0.01])
    write_rows(tmp_path / "table.csv", rows)
    header, met, unmet = (tmp_path / "table.csv").read_text().splitlines()
    assert header == (
        "budget,knob,knob_value,flops_ratio_validation,flops_ratio,accuracy,stderr,samples"
    )
    assert unmet == "0.01,dynamic_k,,,,,," and ",," not in met


def test_a_dense_model_has_one_row_of_full_cost(lm_eval, world):
    (row,) = run_stage(world, "gemma", "dense", "dense", [1.0])
    assert row["flops_ratio_validation"] == row["flops_ratio"] == 1
    assert row["knob"] == "none" and math.isnan(row["knob_value"]) and row["samples"] == 6
