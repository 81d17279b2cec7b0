"""The workflow as a user sees it: what `all` makes, what an edit repeats, what survives a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open

from d2dmoe.plan.digest import imported_modules
from d2dmoe.tables import TRADEOFF_COLUMNS
from workflow.conftest import ROOT, SUITES, Workspace

pytestmark = pytest.mark.workflow

TABLES = ("tradeoff", "summary", "layers", "activity")
MAIN_TABLES = (*TABLES, "patch_load", "fairness")
FROM_TRADEOFF = tuple(f"figure_{name}" for name in ("2a", "2c", "4", "9a", "9b"))
DRAWN = {  # by suite
    "ablations": ["ablation_routers", "ablation_router_widths", "ablation_splits", "figure_9d"],
    "compatibility": ["figure_6", "figure_7", "figure_12"],
}
AFTER_POINTS = {
    *("tradeoff", "summary", "all_tasks", "claims"),
    *(*FROM_TRADEOFF, "figure_4_all_tasks"),
}
AFTER_EXPERTS = AFTER_POINTS | {"layers", "figure_8a"}
LOAD_MAPS = {"load_maps", "patch_load", "figure_8b"}
ACTIVITY = {"activity", "active_neurons", "figure_2b"}
DECIDED = ("supported", "contradicted")


def table(workspace: Workspace, name: str) -> pd.DataFrame:
    return pd.read_csv(workspace.folder / f"results/tables/{name}.csv")


# Results


def test_all_makes_every_table_and_every_figure_that_is_configured(finished):
    assert finished.tables() == {f"{name}.csv" for name in (*MAIN_TABLES, "claims")}
    assert finished.tables("tiny") == {f"{name}.csv" for name in MAIN_TABLES}
    drawn = {*FROM_TRADEOFF, "figure_2b", "figure_8a", "figure_8b"}
    assert finished.figures("tiny") == drawn
    assert finished.figures() == {"figure_3", "figure_4", "figure_10"}


@pytest.mark.parametrize("suite", DRAWN)
def test_a_suite_makes_its_tables_and_figures_in_folders_of_its_own(finished, suite):
    assert finished.tables(suite) == {f"{name}.csv" for name in (*TABLES, "claims")}
    assert finished.tables(f"{suite}/tiny") == {f"{name}.csv" for name in TABLES}
    assert finished.figures(f"{suite}/tiny") == set(DRAWN[suite])


@pytest.mark.parametrize("suite", ["main", "ablations", "compatibility"])
def test_the_tradeoff_table_has_every_operating_point(finished, suite):
    task = finished.config["tasks"]["tiny"]
    variants = task["variants"] | (task[suite]["variants"] if suite != "main" else {})
    points = table(finished, "tradeoff" if suite == "main" else f"{suite}/tradeoff")
    assert list(points.columns) == TRADEOFF_COLUMNS
    own = variants if suite == "main" else task[suite]["variants"]
    assert set(own) <= set(points["variant"])
    for (name, _metric), rows in points[points["variant"].isin(variants)].groupby(
        ["variant", "metric"]
    ):
        knob, values = _operating_points(variants[name], task["select"])
        assert set(rows["knob"]) == {knob}
        assert sorted(rows["knob_value"].dropna()) == sorted(values)
        assert len(rows) == max(1, len(values))
    assert set(points["metric"]) == {"accuracy", "loss"}
    dense = points[points["method"] == "dense"]
    assert set(dense["variant"]) == {"dense", "dense_finetuned"}
    assert dense["relative_value"].max() == 1 and (dense["flops_ratio"] == 1).all()


def _operating_points(variant: dict, select: dict) -> tuple[str, list]:
    """A variant's knob and the values at which it is measured."""
    method = variant["method"]
    if method == "avit":
        return "depth", variant["depths"]
    if method == "quantized":
        return "none", []
    rules = {"ztw": "confidence", "moefication": "top_k", "d2dmoe": "dynamic_k"}
    rule = variant.get("select", rules[method])
    return rule, select[rule]


def test_what_every_method_can_save_is_saved(finished):
    points = table(finished, "tradeoff").query("metric == 'loss'")
    least = points.groupby("variant")["flops_ratio"].min()
    assert least["attention"] < least["d2dmoe"] < 1
    assert least["ztw"] < 1 and least["avit"] < 1


def test_compressed_models_stand_beside_their_conversions(finished):
    points = table(finished, "compatibility/tradeoff").query("metric == 'loss'")
    cost = points.groupby("variant")["flops_ratio"].min()
    for base in ("pruned", "student"):
        assert cost[f"d2dmoe_{base}"] < cost[base] == cost[f"{base}_finetuned"] < 1
    assert cost["dense_int8"] == 1  # eight bits change the size alone
    methods = points.drop_duplicates("variant").set_index("variant")["method"]
    assert methods["pruned_finetuned"] == "pruned" and methods["student"] == "distilled"
    assert methods["dense_int8"] == "quantized" and methods["d2dmoe_int8"] == "d2dmoe"


def test_the_claims_cover_the_whole_paper(finished):
    for suite in ("", "ablations/", "compatibility/"):
        claims = table(finished, f"{suite}claims")
        assert set(claims["claim"]) == {f"C{i}" for i in range(1, 12)}
        assert set(claims["verdict"]) <= {*DECIDED, "not tested"}


def test_each_suite_decides_its_claims_and_says_which_target_decides_the_others(finished):
    decided = {"": ["C2", "C3", "C4", "C6", "C7"], "ablations/": ["C5", "C8"]}
    for suite, claims in (decided | {"compatibility/": ["C10"]}).items():
        rows = table(finished, f"{suite}claims").set_index("claim")
        assert rows.loc[claims, "verdict"].isin(DECIDED).all()
    claims = table(finished, "claims").set_index("claim")["evidence"]
    assert claims["C5"].endswith("snakemake ablations tests it")
    assert claims["C10"].endswith("snakemake compatibility tests it")
    compressed = table(finished, "compatibility/claims").set_index("claim").loc["C10", "where"]
    assert set(compressed) == {"tiny: pruned", "tiny: student", "tiny: dense_int8"}


def test_every_method_was_given_the_same(finished):
    rows = table(finished, "fairness").set_index("variant")
    task = finished.config["tasks"]["tiny"]
    compared = rows.loc[["dense_finetuned", *task["figures"]["tradeoff"]]]
    assert set(compared["steps"]) == {30} and set(compared["samples"]) == {3000}
    assert set(compared["epochs"]) == {3}
    assert set(compared["rates_tried"]) == {"0.001 0.003"} and set(compared["lr"]) == {0.003}
    assert compared.loc["attention", "stages"] == "projections:10 sparsify:10 router:10"
    assert compared["trainings"].to_dict() == dict.fromkeys(compared.index, 1) | {"avit": 2}
    assert (compared["wall_s_mean"] > 1).all()  # importing torch alone takes longer


def test_every_rate_tried_is_tabulated(configured):
    """Those alone that the variants have: their trainings are done. More of them are planned
    below."""
    task = configured.config["tasks"]["tiny"]
    task["tuning"] = {variant: [0.003] for variant in task["tuning"]}
    result = configured.run("tuning")
    assert result.returncode == 0, result.stdout[-5000:]
    rows = table(configured, "tuning")
    assert sorted(rows["variant"]) == sorted(task["tuning"])
    assert set(rows["lr"]) == {0.003} and rows["chosen"].all() and rows["best"].all()
    assert rows["score"].between(0, 1.5).all() and set(rows["metric"]) == {"accuracy"}


# Plans


def test_a_second_call_has_nothing_to_do(finished):
    assert finished.planned(*SUITES) == set()


def test_a_trial_of_another_rate_is_a_training_of_its_own(configured):
    plan = configured.plan("tuning")
    trained = {"avit": 2, "ztw": 1, "sparsify": 3, "finetune": 1}  # at 0.001; those at 0.003 are
    assert {rule: plan.get(rule, 0) for rule in trained} == trained
    assert "projections" not in plan and "dense" not in plan


def test_other_thresholds_repeat_the_evaluation_alone(configured):
    configured.config["tasks"]["tiny"]["select"]["dynamic_k"] = [0.0, 0.3, 0.5]
    assert configured.planned() == {"evaluate"} | AFTER_EXPERTS
    configured.config["tasks"]["tiny"]["select"]["dynamic_k"] = [0.0, 0.3, 0.6, 1.0]
    configured.config["tasks"]["tiny"]["select"]["confidence"] = [0.5]
    assert configured.planned() == {"evaluate_exits"} | AFTER_POINTS


def test_another_router_width_repeats_routers_and_what_follows(configured):
    configured.config["tasks"]["tiny"]["router"]["width"] = 8
    repeated = {"routers", "evaluate", "fairness"} | LOAD_MAPS
    assert configured.planned() == repeated | AFTER_EXPERTS


def test_another_alpha_repeats_from_sparsification_on(configured):
    configured.config["tasks"]["tiny"]["sparsify"]["alpha"] = 0.02
    expected = {"sparsify", "split", "routers", "evaluate", "fairness"}
    assert configured.planned() == expected | LOAD_MAPS | ACTIVITY | AFTER_EXPERTS


def test_another_rate_of_the_imitation_repeats_the_variant_that_imitates(configured):
    configured.config["tasks"]["tiny"]["projections"]["lr"] = 0.05
    plan = configured.plan()
    trained = ("projections", "sparsify", "split", "routers", "evaluate")
    assert {rule: plan[rule] for rule in trained} == dict.fromkeys(trained, 1)
    assert plan.keys() == {*trained, "fairness"} | ACTIVITY | AFTER_EXPERTS
    assert configured.planned(*SUITES[1:]) == set()


@pytest.mark.parametrize(
    ("method", "evaluation", "change", "trainings"),
    [
        ("ztw", "evaluate_exits", {"lr": 0.001}, 1),  # names its folder
        ("avit", "evaluate_halting", {"prior_weight": 0.2}, 2),  # does not
    ],
)
def test_another_option_of_a_baseline_repeats_that_baseline_alone(
    configured, method, evaluation, change, trainings
):
    configured.config["tasks"]["tiny"][method].update(change)
    plan = configured.plan(*SUITES)
    assert plan[method] == plan[evaluation] == trainings
    assert plan.keys() == {method, evaluation, "fairness"} | AFTER_POINTS


def test_another_compressed_model_repeats_its_conversion_alone(configured):
    configured.config["tasks"]["tiny"]["bases"]["pruned"]["heads"] = 0.0
    assert configured.planned("all", "ablations") == set()
    plan = configured.plan("compatibility")
    once = ("prune", "finetune", "sparsify", "split", "routers", "evaluate", "figure_6")
    assert {rule: plan[rule] for rule in once} == dict.fromkeys(once, 1)
    assert not plan.keys() & {"distill", "quantize", "dense"}


EDITED = (
    *("router.py", "sparsity.py", "data/augment.py", "fairness.py"),
    *("stages/projections.py", "stages/ztw.py", "compression/importance.py"),
    *("figures/activity.py", "claims/comparisons.py"),
)


@pytest.mark.parametrize("module", EDITED)
def test_an_edit_of_a_module_reruns_exactly_the_jobs_that_import_it(finished, jobs, module):
    """… and what comes after them."""
    path = finished.folder / "src/d2dmoe" / module
    source = path.read_text()
    rules, edges = jobs
    importing = {job for job, rule in rules.items() if path in _modules_of(rule, finished)}
    expected = Counter(rules[job] for job in _downstream(importing, edges))
    try:
        path.write_text(source + "\nADDED = 1\n")
        plan = finished.plan(*SUITES)
    finally:
        path.write_text(source)
    assert importing and plan == {rule: n for rule, n in expected.items() if rule not in SUITES}


SCRIPTS = {
    **dict.fromkeys(["active_neurons", "layers", "patch_load", "all_tasks"], "gather"),
    **dict.fromkeys([*FROM_TRADEOFF, "figure_4_all_tasks"], "figure_tradeoff"),
    **dict.fromkeys([name for names in DRAWN.values() for name in names], "figure_tradeoff"),
    "figure_2b": "figure_activity",
    "figure_3": "figure_projections",
    "figure_8a": "figure_layers",
    "figure_8b": "figure_load_maps",
    "figure_10": "figure_cost_formula",
}  # of rules whose script has another name


def _modules_of(rule: str, workspace: Workspace) -> set:
    script = workspace.folder / "scripts" / f"{SCRIPTS.get(rule, rule)}.py"
    return imported_modules(script, workspace.folder / "src") if rule not in SUITES else set()


@pytest.fixture(scope="module")
def jobs(finished) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The rule of every job of all suites, and edges from a job to one that reads its output."""
    dot = finished.run(*SUITES, "--dag", "dot").stdout
    rules = dict(re.findall(r'(\d+)\[label = "(\w+)', dot))
    return rules, re.findall(r"(\d+) -> (\d+)", dot)


def _downstream(jobs: set[str], edges: list[tuple[str, str]]) -> set[str]:
    reached = set(jobs)
    while more := {b for a, b in edges if a in reached} - reached:
        reached |= more
    return reached


def test_comments_and_docstrings_rerun_nothing(finished):
    path = finished.folder / "src/d2dmoe/sparsity.py"
    source = path.read_text()
    try:
        path.write_text(source.replace('"""', '"""Reworded. ', 1) + "\n# A comment.\n")
        assert finished.planned(*SUITES) == set()
    finally:
        path.write_text(source)


# Interruptions and errors


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
    trained = ("projections/**/router", "ztw", "avit")  # the first is after all other stages
    models = [finished.find(f"models/**/{stage}/*/model.safetensors")[0] for stage in trained]
    result = workspace.run(*(str(model.relative_to(finished.folder)) for model in models))
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
    written = {path: path.stat().st_mtime_ns for path in finished.find("**/*.*")}
    target = finished.find("models/tiny/seed~0/dense/*/finetune/*/model.safetensors")[0]
    target = target.relative_to(finished.folder)
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
    for path, time_ns in written.items():  # all is as it was
        os.utime(path, ns=(time_ns, time_ns))
    assert finished.planned(*SUITES) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": {"expert_size": 5}}, "split.expert_size = 5 must divide model.d_ff = 32"),
        ({"sparsify": {"alfa": 0.1}}, "did you mean 'alpha'?"),
        ({"ztw": {"epochs": 2}}, "every variant must get the same number of steps"),
        ({"projections": {"multiple": 3}}, "split.projection_expert_size = 2 must divide"),
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


def test_benchmarks_time_a_layer_and_draw_it(finished):
    result = finished.run("benchmarks")
    assert result.returncode == 0, result.stdout
    times = pd.read_csv(finished.folder / "results/benchmarks/cpu.csv")
    assert (times["median_ms"] > 0).all() and set(times["fraction"]) >= {1.0}
    assert finished.figures("benchmarks") == {"cpu"}
    (claim,) = pd.read_csv(finished.folder / "results/benchmarks/claims.csv")["claim"]
    assert claim == "C9"


def test_the_report_holds_figures_with_captions(finished):
    result = finished.run(*SUITES, "--report", "report.html")
    assert result.returncode == 0, result.stdout
    html = (finished.folder / "report.html").read_text()
    for figure in ("figure_4", "figure_6", "ablation_routers"):
        assert f"{figure}.png" in html
    assert "multiply" in html


def test_snakefiles_are_formatted_and_lint_finds_only_the_missing_containers(finished):
    """The environment is the project's own, by uv; so rules name no container."""
    files = ["Snakefile", *map(str, sorted(ROOT.glob("rules/*.smk")))]
    snakefmt = Path(sys.executable).with_name("snakefmt")
    subprocess.run([snakefmt, "--check", *files], cwd=ROOT, check=True, capture_output=True)
    lint = finished.run("--lint").stdout
    remarks = [line for line in lint.splitlines() if line.startswith("    * ")]
    assert all("Specify a conda environment or container" in r for r in remarks), remarks
