"""A task of one's own texts and one's own BERT, of which nothing is said but where they lie."""

import pandas as pd
import pytest

from d2dmoe.checkpoint import load_model
from d2dmoe.claims.ledger import OWN
from d2dmoe.moe import MoE
from d2dmoe.surgery import find
from workflow import language
from workflow.conftest import ROOT, Workspace

pytestmark = pytest.mark.workflow

TASK = {"data": {"source": "path:my/texts"}, "model": {"weights": "path:my/bert"}}
TABLES = {"tradeoff", "summary", "claims", "layers"}


def test_data_and_weights_are_all_that_the_workflow_needs(tmp_path):
    workspace = Workspace(tmp_path / "project", {"seeds": [0], "tasks": {"topics": TASK}})
    rows = pd.read_parquet(ROOT / "resources/wikipedia-topics/train.parquet")[:160]
    texts = workspace.folder / "my/texts"
    texts.mkdir(parents=True)
    rows[:120][["text", "label"]].to_csv(texts / "train.csv", index=False)
    rows[120:][["text", "label"]].to_csv(texts / "test.csv", index=False)
    language.save_checkpoint("bert", language.config(), rows["text"], texts.with_name("bert"))

    targets = [f"results/tables/{name}.csv" for name in TABLES]
    workspace.make(*targets, "results/figures/topics/figure_4.png")

    found = {name: pd.read_csv(workspace.folder / f"results/tables/{name}.csv") for name in TABLES}
    tradeoff = found["tradeoff"]
    assert set(tradeoff["variant"]) == {"dense", "dense_finetuned", "d2dmoe"}
    assert tradeoff["flops_ratio"].min() < 1 and tradeoff["value"].notna().all()
    assert (found["layers"]["num_experts"] == 24).all()  # of 16 neurons, d_ff is 384
    judged = found["claims"].query("where == 'topics'")
    assert len(judged) and set(judged["verdict"]) == {"not tested"}
    assert set(judged["evidence"]) == {OWN}
    model, spec = load_model(workspace.model("d2dmoe", "topics"))
    assert len(find(model, MoE)) == 2 and len(spec.data["classes"]) > 1
    assert workspace.planned(*targets) == set()
