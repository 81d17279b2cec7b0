"""A task of one's own texts and one's own BERT, of which nothing is said but where they lie."""

import pandas as pd
import pytest

from d2dmoe.checkpoint import load_model
from d2dmoe.moe import MoE
from d2dmoe.surgery import find
from workflow import language
from workflow.conftest import ROOT, Workspace

pytestmark = pytest.mark.workflow

TASK = {"data": {"source": "path:my/texts"}, "model": {"weights": "path:my/bert"}}
TRADEOFF = "results/tables/topics/tradeoff.csv"


def test_data_and_weights_are_all_that_the_workflow_needs(tmp_path):
    workspace = Workspace(tmp_path / "project", {"seeds": [0], "tasks": {"topics": TASK}})
    rows = pd.read_parquet(ROOT / "resources/wikipedia-topics/train.parquet")[:80]
    texts = workspace.folder / "my/texts"
    texts.mkdir(parents=True)
    rows[:60][["text", "label"]].to_csv(texts / "train.csv", index=False)
    rows[60:][["text", "label"]].to_csv(texts / "test.csv", index=False)
    language.save_checkpoint("bert", language.config(), rows["text"], texts.with_name("bert"))

    workspace.make(TRADEOFF)
    tradeoff = pd.read_csv(workspace.folder / TRADEOFF)
    assert set(tradeoff["variant"]) == {"dense", "dense_finetuned", "d2dmoe"}
    assert tradeoff["flops_ratio"].min() < 1 and tradeoff["value"].notna().all()
    model, spec = load_model(workspace.model("d2dmoe", "topics"))
    experts = find(model, MoE).values()
    assert [(moe.num_experts, moe.expert_size) for moe in experts] == [(24, 16)] * 2  # d_ff is 384
    assert len(spec.data["classes"]) > 1
