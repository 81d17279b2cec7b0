"""The paper's language tasks as a user runs them, with fewer layers, steps and texts."""

import json
from collections import Counter

import pandas as pd
import pytest
import torch
import yaml

from d2dmoe.checkpoint import load_model
from d2dmoe.claims.ledger import COLUMNS
from d2dmoe.data.splits import open_split
from d2dmoe.inputs import logits_of
from d2dmoe.moe import MoE
from d2dmoe.plan import tables
from d2dmoe.surgery import find
from d2dmoe.tables import TRADEOFF_COLUMNS
from workflow.conftest import Workspace
from workflow.language import FIGURES, PAPER, VARIANTS, save_checkpoint

pytestmark = pytest.mark.workflow

CLASSES = {
    "bert": "BertForSequenceClassification",
    "gpt2": "GPT2LMHeadModel",
    "gemma": "GemmaForCausalLM",
}
METRICS = {
    "bert": ["accuracy", "loss"],
    "gpt2": ["loss", "perplexity"],
    "gemma": ["loss", "perplexity"],
}
SUITE_TABLES = {"tradeoff", "summary", "layers", "activity"}
TABLES = SUITE_TABLES | {"token_load", "fairness", "wall_times"}
DRAWN = {
    "tradeoff": "figure_4",
    "layer_thresholds": "figure_16",
    "phases": "figure_9a",
}


def table(workspace: Workspace, name: str) -> pd.DataFrame:
    return pd.read_csv(workspace.folder / f"results/tables/{name}.csv")


# Results


def test_every_task_has_its_tables_and_the_figures_that_are_configured(finished_language):
    for task, figures in FIGURES.items():
        own = {"comparisons"} | ({"reference"} if task != "gpt2" else set())  # streamed: too large
        assert finished_language.tables(task) == {f"{name}.csv" for name in TABLES | own}
        assert finished_language.figures(task) == {DRAWN[key] for key in figures}
    assert finished_language.tables() == {
        f"{name}.csv" for name in TABLES | {"reference", "claims"}
    }
    overall = {"figure_3", "figure_4", "figure_10", "saved_share", "differences"}
    assert finished_language.figures() == overall


@pytest.mark.parametrize("name", sorted({*TABLES, "reference"}))
def test_the_tables_of_all_tasks_are_those_of_each_after_the_other(finished_language, name):
    of_tasks = [
        f"{task}/{name}" for task in CLASSES if f"{name}.csv" in finished_language.tables(task)
    ]
    together = pd.concat([table(finished_language, path) for path in of_tasks], ignore_index=True)
    pd.testing.assert_frame_equal(table(finished_language, name), together)


@pytest.mark.parametrize("task", CLASSES)
def test_the_tradeoff_has_the_metrics_of_the_kind_at_every_operating_point(finished_language, task):
    rows = table(finished_language, f"{task}/tradeoff")
    select = finished_language.config["tasks"][task]["select"]
    assert list(rows.columns) == TRADEOFF_COLUMNS
    assert list(dict.fromkeys(rows["metric"])) == METRICS[task]
    assert set(rows["variant"]) == {"dense", "dense_finetuned", *VARIANTS[task]}
    for (variant, _), points in rows.groupby(["variant", "metric"]):
        assert sorted(set(points["seed"])) == finished_language.config["seeds"]
        if variant in VARIANTS[task]:
            values = select["dynamic_k"]
            assert all(sorted(p["knob_value"]) == sorted(values) for _, p in points.groupby("seed"))
    assert rows["value"].notna().all() and (rows["relative_value"] > 0).all()


@pytest.mark.parametrize("task", CLASSES)
def test_all_experts_cost_what_the_dense_model_does_and_the_routers(finished_language, task):
    rows = table(finished_language, f"{task}/tradeoff")
    everything = rows[(rows["method"] == "d2dmoe") & (rows["knob_value"] == 0)]
    ratios = everything.groupby("variant")["flops_ratio"].first()
    assert list(ratios.index) == sorted({"attention", "d2dmoe"} & set(VARIANTS[task]))
    assert (ratios > 1).all() and (ratios < 1.3).all()
    assert (rows[rows["method"] != "dense"].groupby("variant")["flops_ratio"].min() < 1).all()


def test_simple_models_stand_beside_the_dense_ones(finished_language):
    rows = table(finished_language, "reference")
    simple = {"bert": ("TF-IDF", "accuracy"), "gemma": ("byte-level 5-gram", "loss_per_byte")}
    for task, (model, metric) in simple.items():
        own = rows[rows["task"] == task]
        assert list(own["model"]) == [model, "dense", "dense_finetuned"]
        assert set(own["metric"]) == {metric} and (own["value"] >= 0).all()
    dense = table(finished_language, "bert/tradeoff").query(
        "metric == 'accuracy' and variant == 'dense'"
    )
    assert (
        rows.query("task == 'bert' and model == 'dense'")["value"].item() == dense["value"].item()
    )


def test_the_claims_are_decided_for_every_task(finished_language):
    claims = table(finished_language, "claims")
    assert list(claims.columns) == COLUMNS
    for claim in ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C10"):
        assert list(claims[claims["claim"] == claim]["where"]) == sorted(CLASSES)


@pytest.mark.parametrize("task", CLASSES)
def test_a_saved_model_is_of_its_own_class_with_experts_for_ffns(finished_language, task):
    model, spec = load_model(finished_language.model(VARIANTS[task][0], task))
    assert type(model).__name__ == CLASSES[task]
    assert type(model).__module__.startswith("transformers.")
    layers = [moe for moe in find(model, MoE).values() if moe.role == "ffn"]
    assert len(layers) == finished_language.config["tasks"][task]["model"]["layers"]
    data = finished_language.plan.data_folder(task)
    split = open_split(finished_language.folder / data, "test")
    inputs, _ = split.batch(split.read(torch.arange(2)), torch.device("cpu"))
    outputs = spec.data["classes"] if task == "bert" else range(spec.data["vocab_size"])
    with torch.no_grad():
        assert logits_of(model, inputs).shape[-1] == len(outputs)


def test_attention_projections_are_experts_too(finished_language):
    model, _spec = load_model(finished_language.model("attention", "gemma"))
    blocks = finished_language.config["tasks"]["gemma"]["model"]["layers"]
    roles = Counter(moe.role for moe in find(model, MoE).values())
    assert roles == dict.fromkeys(["ffn", "q", "k", "v", "o"], blocks)


# Plans


def test_a_second_call_has_nothing_to_do(finished_language):
    assert finished_language.planned("all") == set()


def test_other_thresholds_of_one_task_repeat_its_evaluation_alone(configured_language):
    configured_language.config["tasks"]["bert"]["select"]["dynamic_k"] = [0.0, 0.1, 0.01, 0.001]
    once = ("evaluate", "token_load", "tradeoff", "layers_table", "token_load_table", "summary")
    once += ("claims", "figure_4", "figure_16", "figure_4_all_tasks", "saved_share", "own_explorer")
    assert configured_language.counted() == dict.fromkeys(once, 1) | {"all_tasks": 4}


def test_an_edit_of_the_simple_models_repeats_the_references_alone(finished_language):
    with finished_language.edited("text_references.py", lambda text: text + "\nADDED = 1\n"):
        assert finished_language.counted() == {"reference": 2, "all_tasks": 1, "own_explorer": 1}


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Workspace:
    """The paper's configuration; without the hub: sources and weights are fetched by the jobs."""
    folder = tmp_path_factory.mktemp("paper") / "project"
    return Workspace(folder, yaml.safe_load(PAPER.read_text()))


def test_the_papers_configuration_plans_all_four_experiments(paper):
    plan = paper.counted()
    assert plan["dataset"] == plan["dense"] == plan["summary"] == plan["figure_4"] == 4
    assert plan["tokenizer"] == 3 and plan["reference"] == plan["load_maps"] == 1
    assert plan["boolq"] == 8 and plan["table_1"] == plan["claims"] == 1
    assert plan["projections"] == plan["fairness"] == plan["avit"] == 4 and plan["ztw"] == 2
    assert {f"figure_{n}" for n in ("9a", "16", "4_all_tasks")} <= plan.keys()


def test_a_task_of_the_papers_configuration_is_a_target_of_its_own(paper):
    bert = tables.task_results(paper.plan, "main", "bert")
    assert bert and all("/bert/" in path for path in bert)
    made = {path for job in paper.jobs("bert") for path in job.outputs}
    assert set(bert) <= made and not any("/gpt2/" in path for path in made)


def test_the_papers_configuration_plans_ablations_and_compressed_models(paper):
    plan = paper.counted("ablations", "compatibility")
    assert {
        f"ablation_{name}" for name in ("routers", "clusterings", "router_widths")
    } <= plan.keys()
    assert {f"figure_{n}" for n in ("9b", "9c", "9d", "6", "7", "12")} <= plan.keys()
    assert (plan["prune"], plan["distill"], plan["quantize"]) == (2, 1, 2)


# Errors


@pytest.mark.parametrize(
    ("task", "section", "change", "message"),
    [
        ("bert", "data", {"length": 513}, "data.length = 513 tokens exceeds model.positions = 512"),
        ("gpt2", "data", {"tokenizer": {"source": "path:nowhere"}}, "tokenizer path:nowhere"),
    ],
)
def test_what_the_configuration_shows_ends_the_run_before_its_first_job(
    configured_language, task, section, change, message
):
    configured_language.config["tasks"][task][section].update(change)
    result = configured_language.run("all")
    assert result.returncode != 0
    assert message in result.stdout
    assert "Traceback" not in result.stdout and "Building DAG" not in result.stdout


UNUSABLE = {  # a task's change: what its first job that reads it says
    "column": "there is no column 'body'; the columns are text, timestamp, url",
    "empty": "path:sources/empty, train.jsonl: the text of row 1 (from 0) is empty",
    "foreign": "the data were tokenised with another vocabulary than checkpoints/foreign",
}


@pytest.fixture(scope="module")
def failed(finished_language) -> str:
    """What a call says that runs three jobs that fail, and two before one of them."""
    folder, original = finished_language.folder, finished_language.config
    sources, checkpoints = folder / "sources", folder / "checkpoints"
    tasks = dict(original["tasks"])
    (sources / "empty").mkdir()
    rows = [json.dumps({"text": text}) for text in ("A text.", " \n")]
    (sources / "empty/train.jsonl").write_text("\n".join(rows))
    for name, change in (("column", {"text": "body"}), ("empty", {"source": "path:sources/empty"})):
        tasks[name] = tasks["gemma"] | {"data": tasks["gemma"]["data"] | change}
    topics = pd.read_parquet(sources / "carer/train.parquet")["text"]
    save_checkpoint("gpt2", original, topics, checkpoints / "foreign")
    weights = {"weights": "path:checkpoints/foreign"}
    tasks["foreign"] = tasks["gpt2"] | {"model": tasks["gpt2"]["model"] | weights}
    finished_language.config = original | {"tasks": tasks}
    try:
        plan = finished_language.plan
        targets = [f"{plan.data_folder(name)}/tokenizer.json" for name in ("column", "empty")]
        targets.append(plan.line("main", "foreign", "dense").last.model)
        assert len(finished_language.jobs(*targets)) == 5
        result = finished_language.run(*targets)
    finally:
        finished_language.config = original
    assert result.returncode != 0
    return result.stdout


@pytest.mark.parametrize("task", UNUSABLE)
def test_what_cannot_be_used_is_named_by_the_job_that_reads_it(failed, task):
    assert UNUSABLE[task] in failed
    assert "Traceback" not in failed
