"""The workflow as a user sees it: what `all` makes, what an edit repeats, what survives a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open

from d2dmoe.digest import imported_modules
from d2dmoe.tables import TRADEOFF_COLUMNS
from workflow.conftest import ROOT, Workspace

pytestmark = pytest.mark.workflow

TABLES = ("tradeoff", "summary", "layers", "activity", "patch_load")
FROM_TRADEOFF = tuple(f"figure_{name}" for name in ("2a", "2c", "4", "9b", "9d"))
AFTER_EVALUATION = {
    *("tradeoff", "layers", "patch_load", "summary", "all_tasks", "claims"),
    *(*FROM_TRADEOFF, "figure_4_all_tasks", "figure_8a", "figure_8b"),
}


def test_all_makes_every_table_and_every_figure_that_is_configured(finished):
    assert finished.tables() == {f"{name}.csv" for name in (*TABLES, "claims")}
    assert finished.tables("tiny") == {f"{name}.csv" for name in TABLES}
    drawn = {*FROM_TRADEOFF, "figure_2b", "figure_8a", "figure_8b"}
    assert finished.figures("tiny") == drawn
    assert finished.figures() == {"figure_4", "figure_10"}


def test_the_tradeoff_table_has_every_operating_point(finished):
    table = pd.read_csv(finished.folder / "results/tables/tradeoff.csv")
    assert list(table.columns) == TRADEOFF_COLUMNS
    select, variants = (finished.config["tasks"]["tiny"][key] for key in ("select", "variants"))
    for name, variant in variants.items():
        static = variant["method"] == "moefication" or variant.get("select") == "top_k"
        rule = "top_k" if static else "dynamic_k"
        points = table[table["variant"] == name]
        assert set(points["knob"]) == {rule}
        for metric in ("accuracy", "loss"):
            of_metric = points[points["metric"] == metric]
            assert sorted(of_metric["knob_value"]) == sorted(select[rule])
    dense = table[table["method"] == "dense"]
    assert set(dense["variant"]) == {"dense", "dense_finetuned"}
    assert dense["relative_value"].max() == 1 and (dense["flops_ratio"] == 1).all()


def test_the_claims_cover_the_whole_paper(finished):
    claims = pd.read_csv(finished.folder / "results/tables/claims.csv")
    assert set(claims["claim"]) == {f"C{i}" for i in range(1, 12)}
    assert set(claims["verdict"]) <= {"supported", "contradicted", "not tested"}


def test_a_second_call_has_nothing_to_do(finished):
    assert finished.planned() == set()


def test_other_thresholds_repeat_the_evaluation_alone(configured):
    configured.config["tasks"]["tiny"]["select"]["dynamic_k"] = [0.0, 0.3, 0.5]
    assert configured.planned() == {"evaluate"} | AFTER_EVALUATION - {"patch_load", "figure_8b"}


def test_another_router_width_repeats_routers_and_what_follows(configured):
    configured.config["tasks"]["tiny"]["router"]["width"] = 8
    assert configured.planned() == {"routers", "evaluate", "load_maps"} | AFTER_EVALUATION


def test_another_alpha_repeats_from_sparsification_on(configured):
    configured.config["tasks"]["tiny"]["sparsify"]["alpha"] = 0.02
    expected = {"sparsify", "activity", "split", "routers", "evaluate", "load_maps"}
    assert configured.planned() == expected | AFTER_EVALUATION | {"active_neurons", "figure_2b"}


@pytest.mark.parametrize(
    "module",
    ["router.py", "sparsity.py", "figures/activity.py", "claims/comparisons.py", "data/augment.py"],
)
def test_an_edit_of_a_module_reruns_exactly_the_stages_that_import_it(finished, graph, module):
    """… and what comes after them."""
    path = finished.folder / "src/d2dmoe" / module
    source = path.read_text()
    rules, edges = graph
    importing = {rule for rule in rules if path in _modules_of(rule, finished)}
    try:
        path.write_text(source + "\nADDED = 1\n")
        assert importing and finished.planned() == _downstream(importing, edges)
    finally:
        path.write_text(source)


SCRIPTS = {
    **dict.fromkeys(["active_neurons", "layers", "patch_load", "all_tasks"], "gather"),
    **dict.fromkeys([*FROM_TRADEOFF, "figure_4_all_tasks"], "figure_tradeoff"),
    "figure_2b": "figure_activity",
    "figure_8a": "figure_layers",
    "figure_8b": "figure_load_maps",
    "figure_10": "figure_cost_formula",
}  # of rules whose script has another name


def _modules_of(rule: str, workspace: Workspace) -> set:
    script = workspace.folder / "scripts" / f"{SCRIPTS.get(rule, rule)}.py"
    return imported_modules(script, workspace.folder / "src")


@pytest.fixture(scope="module")
def graph(finished) -> tuple[set[str], list[tuple[str, str]]]:
    """Rules of `all`, and edges from a rule to one that reads its output."""
    dot = finished.run("all", "--rulegraph", "dot").stdout
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', dot))
    edges = [(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", dot)]
    return set(names.values()) - {"all"}, edges


def _downstream(rules: set[str], edges: list[tuple[str, str]]) -> set[str]:
    reached = set(rules)
    while more := {b for a, b in edges if a in reached} - reached:
        reached |= more
    return reached - {"all"}


def test_comments_and_docstrings_rerun_nothing(finished):
    path = finished.folder / "src/d2dmoe/sparsity.py"
    source = path.read_text()
    try:
        path.write_text(source.replace('"""', '"""Reworded. ', 1) + "\n# A comment.\n")
        assert finished.planned() == set()
    finally:
        path.write_text(source)


def test_a_killed_training_resumes_to_the_same_bytes(finished, tmp_path):
    """kill -9 in the middle of training; the next call continues and gives identical results."""
    workspace = Workspace(tmp_path / "project")
    process = subprocess.Popen(
        workspace.command("all"),
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _wait_for(lambda: any(_state_step(p) >= 3 for p in workspace.find(".state/*.safetensors")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not workspace.find("models/**/model.safetensors")
    (state,) = workspace.find(".state/*.safetensors")
    state.with_name(f".{state.name}.part").touch()  # as if it was killed while it saved

    unlocked = workspace.run("--unlock")
    assert unlocked.returncode == 0, unlocked.stdout
    last = finished.find("models/**/router/*/model.safetensors")[0]  # after all other stages
    result = workspace.run(str(last.relative_to(finished.folder)))
    assert result.returncode == 0, result.stdout[-5000:]
    log = next(iter(workspace.find("logs/tiny/**/dense.log"))).read_text()
    assert "dense continues after step" in log
    _assert_same_results(workspace, finished)
    assert not workspace.find(".state/*")  # removed on success


def _state_step(path) -> int:
    try:
        with safe_open(path, framework="np") as f:
            return json.loads(f.metadata()["about"])["step"]
    except OSError:  # renamed just now
        return 0


def _wait_for(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


def _assert_same_results(one: Workspace, other: Workspace) -> None:
    for pattern in ("data/**/*.*", "models/**/*.csv", "models/**/*.safetensors"):
        files = [p.relative_to(one.folder) for p in one.find(pattern)]
        assert files
        for file in files:
            assert (one.folder / file).read_bytes() == (other.folder / file).read_bytes(), file


def test_a_truncated_checkpoint_is_named_and_the_rest_stays(finished):
    model = finished.find("models/tiny/seed~0/dense/*/model.safetensors")[0]
    split = finished.find("models/**/split/*/model.safetensors")[0]
    whole, kept = model.read_bytes(), split.read_bytes()
    target = finished.find("models/**/finetune/*/model.safetensors")[0].relative_to(finished.folder)
    try:
        model.write_bytes(whole[: len(whole) // 2])
        result = finished.run(str(target), "--force", "--keep-incomplete")
        assert result.returncode != 0
        assert f"{model.relative_to(finished.folder)} is damaged or truncated" in result.stdout
        assert "Delete it and run the same command again" in result.stdout
        assert "Traceback" not in result.stdout
        assert split.read_bytes() == kept
    finally:
        model.write_bytes(whole)
    assert finished.run(str(target)).returncode == 0
    assert finished.run("all", "--touch").returncode == 0  # all else is as it was
    assert finished.planned() == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": {"expert_size": 5}}, "split.expert_size = 5 must divide model.d_ff = 32"),
        ({"sparsify": {"alfa": 0.1}}, "did you mean 'alpha'?"),
        ({"select": {"dynamic_k": [1.5]}}, "less than or equal to 1"),
        ({"data": {"source": "path:nowhere"}}, "nowhere"),
        ({"dense": {"epochs": "three"}}, "tasks.tiny.dense.epochs = 'three'"),
    ],
)
def test_a_bad_configuration_ends_the_run_before_its_first_job(configured, change, message):
    for section, values in change.items():
        configured.config["tasks"]["tiny"][section].update(values)
    result = configured.run("all")
    assert result.returncode != 0
    assert message in result.stdout
    assert "Traceback" not in result.stdout and "Building DAG" not in result.stdout


def test_the_report_holds_figures_with_captions(finished):
    result = finished.run("--report", "report.html")
    assert result.returncode == 0, result.stdout
    html = (finished.folder / "report.html").read_text()
    assert "figure_4.png" in html and "multiply" in html


def test_snakefiles_are_formatted_and_lint_finds_only_the_missing_containers(finished):
    """The environment is the project's own, by uv; so rules name no container."""
    files = ["Snakefile", *map(str, sorted(ROOT.glob("rules/*.smk")))]
    snakefmt = Path(sys.executable).with_name("snakefmt")
    subprocess.run([snakefmt, "--check", *files], cwd=ROOT, check=True, capture_output=True)
    lint = finished.run("--lint").stdout
    remarks = [line for line in lint.splitlines() if line.startswith("    * ")]
    assert all("Specify a conda environment or container" in r for r in remarks), remarks
