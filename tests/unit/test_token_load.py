"""Laws of the load per token: it is the evaluation's, token by token, with the samples' texts."""

import json
from pathlib import Path

import pytest
import torch
from small import EXPERTS, SPEC, make_images, make_routed, read_from, with_experts, with_routers
from small_language import (
    CAUSAL,
    VOCABULARY,
    WIDTH,
    language_spec,
    make_corpus_split,
    make_routed_language,
    make_text_split,
)

from d2dmoe.checkpoint import save_model
from d2dmoe.data.splits import Split
from d2dmoe.evaluation import evaluate_routed
from d2dmoe.jobs.run import Run
from d2dmoe.stages.evaluate import load_maps
from d2dmoe.stages.token_load import LONGEST, token_load

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
LAYERS = 2
TAUS = [0.0, 0.4, 1.0]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """Of the small models' vocabulary: spaces, quotes, and what a reader of CSV may mistake."""
    from tokenizers import Tokenizer, models

    odd = ["nan", "1e5", '"', ",", "\n", "NA"]
    words = odd + [f"w{i}" for i in range(VOCABULARY - len(odd))]
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="nan")).save(
        str(path)
    )
    return path


def saved(path: Path, name: str) -> Path:
    """A routed language model's file."""
    spec = with_routers(with_experts(language_spec(name, activation="relu"), EXPERTS), width=WIDTH)
    save_model(path, make_routed_language(name), spec)
    return path


def measured(model: Path, split: Split, count: int, monkeypatch, tokenizer: Path | None = None):
    read_from(split, monkeypatch)
    cfg = {"values": TAUS, "samples": count}
    return token_load(model, "dynamic_k", cfg, RUN, tokenizer)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_over_all_samples_it_is_the_experts_that_the_evaluation_counts(
    name, tmp_path, tokenizer, monkeypatch
):
    split = make_corpus_split(6) if name in CAUSAL else make_text_split()
    rows = measured(saved(tmp_path / "model", name), split, 99, monkeypatch, tokenizer)
    model = make_routed_language(name)
    _points, layers, _ = evaluate_routed(model, split, "dynamic_k", TAUS, 4, CPU)
    for tau in TAUS:
        own = [row["experts"] for row in rows if row["knob_value"] == tau]
        assert len(own) == int(split.lengths.sum())  # no padding
        counted = sum(row["experts"] for row in layers if row["knob_value"] == tau)
        assert sum(own) / len(own) == pytest.approx(counted)
    assert {row["num_experts"] for row in rows} == {LAYERS * EXPERTS}


def test_tokens_are_those_of_the_text_and_come_back_from_json(tmp_path, tokenizer, monkeypatch):
    split = make_text_split()
    rows = measured(saved(tmp_path / "model", "bert"), split, 3, monkeypatch, tokenizer)
    words = {i: w for w, i in json.loads(tokenizer.read_text())["model"]["vocab"].items()}
    ends = split.offsets.tolist()
    for sample in range(3):
        own = [r for r in rows if (r["sample"], r["knob_value"]) == (sample, TAUS[0])]
        ids = split.tokens[ends[sample] : ends[sample + 1]].tolist()
        assert [json.loads(row["token"]) for row in own] == [words[i] for i in ids]
        assert [row["position"] for row in own] == [*range(len(ids))]
    assert max(row["sample"] for row in rows) == 2


def test_a_higher_tau_runs_no_more_experts_of_any_token(tmp_path, tokenizer, monkeypatch):
    path = saved(tmp_path / "model", "gpt2")
    rows = measured(path, make_corpus_split(2), 2, monkeypatch, tokenizer)
    by_tau = [[r["experts"] for r in rows if r["knob_value"] == tau] for tau in TAUS]
    assert set(by_tau[0]) == {LAYERS * EXPERTS} and sum(by_tau[-1]) < sum(by_tau[0])
    for more, less in zip(by_tau, by_tau[1:], strict=False):
        assert all(a >= b for a, b in zip(more, less, strict=True))


def test_patches_run_what_figure_8b_shows_at_the_same_point(tmp_path, monkeypatch):
    images, path = make_images(5), tmp_path / "model"
    save_model(path, make_routed(), with_routers(with_experts(SPEC)))
    rows = measured(path, images, 3, monkeypatch)
    drawn, _ = load_maps(path, "dynamic_k", {"value": TAUS[1], "images": 3}, RUN)
    own = [row for row in rows if row["knob_value"] == TAUS[1]]
    assert {row["token"] for row in own} == {""}
    shares = torch.tensor([row["experts"] / row["num_experts"] for row in own])
    torch.testing.assert_close(shares.view(drawn["loads"].shape), drawn["loads"])
    assert [row["position"] for row in own] == [0, 1, 2, 3] * 3
    assert len(shares.unique()) > 1


def test_long_texts_are_cut(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("d2dmoe.stages.token_load.LONGEST", 4)
    assert LONGEST > 4
    path = saved(tmp_path / "model", "bert")
    rows = measured(path, make_text_split(), 3, monkeypatch, tokenizer)
    lengths = {s: len([r for r in rows if r["sample"] == s]) // len(TAUS) for s in range(3)}
    assert lengths == {0: 4, 1: 4, 2: 3}
