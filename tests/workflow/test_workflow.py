"""The workflow as a user sees it: what `all` makes, what an edit repeats, what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors import safe_open

from d2dmoe.claims import CLAIMS
from d2dmoe.config.task import SUITES as PLANNED_SUITES
from d2dmoe.methods import EVALUATIONS
from d2dmoe.plan import tables
from d2dmoe.tables import TRADEOFF_COLUMNS
from workflow.conftest import ROOT, SUITES, Workspace

pytestmark = pytest.mark.workflow

TABLES = ("tradeoff", "summary", "comparisons", "layers", "activity")
MAIN_TABLES = (*TABLES, "patch_load", "token_load", "fairness", "wall_times")
FROM_TRADEOFF = tuple(f"figure_{name}" for name in ("2a", "2c", "4", "9a", "9b"))
DRAWN = {  # by suite
    "ablations": [
        "ablation_clusterings",
        "ablation_routers",
        "ablation_router_widths",
        "ablation_extended",
        "figure_9d",
    ],
    "compatibility": ["figure_7", "figure_12"],
    "neighbours": ["neighbours_cost", "neighbours_parameters"],
}
AFTER_POINTS = {
    *("tradeoff", "summary", "all_tasks", "claims"),
    *(*FROM_TRADEOFF, "figure_4_all_tasks", "saved_share", "differences", "own_explorer"),
}
AFTER_EXPERTS = AFTER_POINTS | {"layers_table", "figure_8a"}
TOKEN_LOAD = {"token_load", "token_load_table"}
LOAD_MAPS = {"load_maps", "patch_load_table", "figure_8b"}
ACTIVITY = {"activity", "activity_table", "figure_2b"}
ABOUT_MODELS = {"wall_times", "models"}  # what tells of all trainings, and of all folders
DECIDED = ("supported", "contradicted", "undecided")


def table(workspace: Workspace, name: str) -> pd.DataFrame:
    return pd.read_csv(workspace.folder / f"results/tables/{name}.csv")


# Results


def test_all_makes_every_table_and_every_figure_that_is_configured(finished):
    assert finished.tables() == {f"{name}.csv" for name in (*MAIN_TABLES, "claims")}
    assert finished.tables("tiny") == {f"{name}.csv" for name in MAIN_TABLES}
    drawn = {*FROM_TRADEOFF, "figure_2b", "figure_8a", "figure_8b"}
    assert finished.figures("tiny") == drawn
    overall = {"figure_3", "figure_4", "figure_10", "saved_share", "differences"}
    assert finished.figures() == overall


@pytest.mark.parametrize("suite", DRAWN)
def test_a_suite_makes_its_tables_and_figures_in_folders_of_its_own(finished, suite):
    own = {*TABLES, *({"neighbours"} & {suite})}
    assert finished.tables(suite) == {f"{name}.csv" for name in (*own, "claims")}
    assert finished.tables(f"{suite}/tiny") == {f"{name}.csv" for name in own}
    assert finished.figures(f"{suite}/tiny") == set(DRAWN[suite])


def test_all_results_of_the_plan_are_there(finished):
    plan = finished.plan
    results = set(tables.all_results(plan))
    for suite in PLANNED_SUITES:
        results |= {*tables.suite_results(plan, suite), *tables.task_results(plan, suite, "tiny")}
    assert [path for path in sorted(results) if not (finished.folder / path).exists()] == []


@pytest.mark.parametrize("suite", ["main", *DRAWN])
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
        assert sorted(rows["knob_value"].dropna()) == sorted(v for v in values if v is not None)
        assert len(rows) == len(values)
    assert set(points["metric"]) == {"accuracy", "loss"}
    dense = points[points["method"] == "dense"]
    assert set(dense["variant"]) == {"dense", "dense_finetuned"}
    assert dense["relative_value"].max() == 1 and (dense["flops_ratio"] == 1).all()


def _operating_points(variant: dict, select: dict) -> tuple[str, list]:
    """A variant's knob and the values at which it is measured, None for a model without one."""
    method = variant["method"]
    if method == "avit":
        return "depth", variant["depths"]
    if method == "factorllm":
        return "factors", variant["active"]
    if method == "ldpruner":
        return "none", [None] * len(variant["removed"])
    if method == "quantized":
        return "none", [None]
    rules = {"moefication": "top_k", "d2dmoe": "dynamic_k"}
    rules |= dict.fromkeys(("ztw", "dyn_adapter"), "confidence")
    rules |= dict.fromkeys(("cats", "chess", "teal"), "density")
    rules |= {"cmoe": "top_k", "cmoe_tuned": "top_k", "seer": "active", "sam": "grouped"}
    rules |= {"adapmoe": "sensitivity"}
    rule = variant.get("select") or rules[method]
    return rule, select[rule]


def test_what_every_method_can_save_is_saved(finished):
    points = table(finished, "tradeoff").query("metric == 'loss'")
    least = points.groupby("variant")["flops_ratio"].min()
    assert least["attention"] < least["d2dmoe"] < 1
    assert least["ztw"] < 1 and least["avit"] < 1


def test_compressed_models_stand_beside_their_conversions(finished):
    points = table(finished, "compatibility/tradeoff").query("metric == 'loss'")
    cost = points.groupby("variant")["flops_ratio"].min()
    assert cost["d2dmoe_student"] < cost["student"] == cost["student_finetuned"] < 1
    assert cost["dense_int8"] == 1  # eight bits change the size alone
    methods = points.drop_duplicates("variant").set_index("variant")["method"]
    assert methods["student_finetuned"] == methods["student"] == "distilled"
    assert methods["dense_int8"] == "quantized" and methods["d2dmoe_int8"] == "d2dmoe"


def test_the_claims_cover_the_whole_paper(finished):
    for suite in ("", *(f"{suite}/" for suite in DRAWN)):
        claims = table(finished, f"{suite}claims")
        assert set(claims["claim"]) == set(CLAIMS)
        assert set(claims["verdict"]) <= {*DECIDED, "not tested"}


def test_each_suite_decides_its_claims_and_says_which_target_decides_the_others(finished):
    decided = {"": ["C2", "C4", "C6", "C7"], "ablations/": ["C5", "C8"]}
    decided |= {"compatibility/": ["C10"], "neighbours/": [f"N{i}" for i in range(1, 11) if i != 7]}
    for suite, claims in decided.items():
        rows = table(finished, f"{suite}claims").set_index("claim")
        assert rows.loc[claims, "verdict"].isin(DECIDED).all()
    claims = table(finished, "claims").set_index("claim")["evidence"]
    assert claims["C5"].endswith("snakemake ablations tests it")
    assert claims["C10"].endswith("snakemake compatibility tests it")
    compressed = table(finished, "compatibility/claims").set_index("claim").loc["C10", "where"]
    assert set(compressed) == {"tiny: student", "tiny: dense_int8"}


def test_every_method_was_given_the_same(finished):
    rows = table(finished, "fairness").set_index("variant")
    task = finished.config["tasks"]["tiny"]
    compared = rows.loc[["dense_finetuned", *task["figures"]["tradeoff"]]]
    on_the_reference = compared.index == "ztw"
    for column, given in {"steps": 30, "samples": 3000, "epochs": 3}.items():
        assert set(compared[column][~on_the_reference]) == {given}
        assert set(compared[column][on_the_reference]) == {2 * given}
    assert set(compared["rates_tried"]) == {"0.001 0.003"} and set(compared["lr"]) == {0.003}
    assert compared.loc["attention", "stages"] == "projections:10 sparsify:10 router:10"
    assert compared["trainings"].to_dict() == dict.fromkeys(compared.index, 1) | {"avit": 2}


def test_the_time_of_every_method_stands_in_a_table_of_its_own(finished):
    given, times = (
        table(finished, name).set_index("variant") for name in ("fairness", "wall_times")
    )
    assert list(times.index) == list(given.index) and (times["wall_s_mean"] > 0).all()
    assert (times["attempts"] >= times["jobs"]).all()
    assert times.loc["attention", "jobs"] == 4  # with the clustering
    (record,) = finished.find("benchmarks/jobs/models/tiny/seed-0/dense-*/dense.json")
    record = json.loads(record.read_text())
    assert record["s"] > 0 and record["versions"]["torch"] and record["hardware"]["cpu"]


def test_every_rate_tried_is_tabulated(configured):
    """Of two variants that alone which they have: their trainings are done. More of them are
    planned below."""
    task = configured.config["tasks"]["tiny"]
    task["figures"]["tradeoff"] = ["d2dmoe"]
    task["tuning"] = {"dense_finetuned": [0.003], "d2dmoe": [0.003]}
    configured.make("tuning")
    rows = table(configured, "tuning")
    assert sorted(rows["variant"]) == sorted(task["tuning"])
    assert set(rows["lr"]) == {0.003} and rows["chosen"].all() and rows["best"].all()
    assert rows["score"].between(0, 1.5).all() and set(rows["metric"]) == {"accuracy"}


# Folders


def folders_of(workspace: Workspace) -> set[str]:
    """The folders of models that there are."""
    found = workspace.find("models/*/seed-*/*")
    return {str(path.relative_to(workspace.folder)) for path in found}


def test_every_folder_says_what_its_model_is_made_of(finished):
    """Its parents, from one to the next, and the dataset are there."""
    folders = folders_of(finished)
    steps = finished.plan.steps
    for folder in folders:
        lineage = yaml.safe_load((finished.folder / folder / "lineage.yaml").read_text())
        assert (finished.folder / folder / "model.safetensors").exists()
        assert (finished.folder / lineage["data"] / "dataset.json").exists()
        parent = steps[folder].parent
        assert lineage["parent"] == (parent and parent.folder)
        assert lineage["parent"] in (folders if lineage["stage"] != "dense" else [None])
        assert folder.startswith(f"results/models/tiny/seed-0/{lineage['stage']}-")


def test_the_table_of_models_lists_every_folder(finished):
    models = pd.read_csv(finished.folder / "results/models.csv")
    assert set(models["folder"]) == folders_of(finished)
    ours = models[models["variant"] == "attention"]
    assert list(ours["stage"]) == ["dense", "projections", "sparsify", "clustering", "router"]


def test_what_another_configuration_left_is_kept_listed_and_removed_on_demand(configured):
    """Going back to a configuration, before that or after, has nothing to do."""
    router = configured.config["tasks"]["tiny"]["router"]
    router["width"] = 6
    other = configured.plan.line("main", "tiny", "d2dmoe").last
    configured.make(other.model)
    router["width"] = 4
    assert configured.planned(*SUITES) == set()
    router["width"] = 6
    assert configured.planned(other.model) == set()
    router["width"] = 4

    name = other.folder.removeprefix("results/")
    left = {f"results/{place}{name}" for place in ("", "logs/", "benchmarks/jobs/")}
    everything = _files(configured)
    assert _listed(configured.make("clean_unused")) == left
    assert _files(configured) == everything
    assert _listed(configured.make("remove_unused")) == left
    gone = {file for file in everything if any(file.startswith(f"{path}/") for path in left)}
    assert len(gone) == 9  # model, history, lineage and record with checksums, and a log
    assert _files(configured) == everything - gone
    assert configured.planned(*SUITES) == set()


def _files(workspace: Workspace) -> set[str]:
    """All results, without the logs of the two rules that list and remove."""
    files = (path for path in workspace.find("**/*") if path.is_file())
    files = {str(path.relative_to(workspace.folder)) for path in files}
    return files - {f"results/logs/{rule}_unused.log" for rule in ("clean", "remove")}


def _listed(output: str) -> set[str]:
    """The folders among the lines that a call printed."""
    return {line for line in output.splitlines() if line.startswith("results/")}


# Plans


def test_a_second_call_has_nothing_to_do(finished):
    assert finished.planned(*SUITES) == set()


def test_a_trial_of_another_rate_is_a_training_of_its_own(configured):
    plan = configured.counted("tuning")
    trained = {"avit": 2, "ztw": 1, "sparsify": 3, "finetune": 1}  # at 0.001; those at 0.003 are
    assert {rule: plan[rule] for rule in trained} == trained
    assert "projections" not in plan and "dense" not in plan
    tried = {"": 3, "_dense": 1, "_exits": 1, "_halting": 2}
    assert {rule for rule in plan if rule.startswith("evaluate")} == {
        f"evaluate{kind}_trial" for kind in tried
    }
    assert {kind: plan[f"evaluate{kind}_trial"] for kind in tried} == tried
    measured = [x for job in configured.jobs("tuning") for x in job.outputs if "/evaluate/" in x]
    assert measured and not any("/test/" in path for path in measured)


def test_other_thresholds_repeat_the_evaluation_alone(configured):
    configured.config["tasks"]["tiny"]["select"]["dynamic_k"] = [0.0, 0.3, 0.5]
    assert configured.planned() == {"evaluate"} | TOKEN_LOAD | AFTER_EXPERTS
    configured.config["tasks"]["tiny"]["select"]["dynamic_k"] = [0.0, 0.3, 0.6, 1.0]
    configured.config["tasks"]["tiny"]["select"]["confidence"] = [0.5]
    assert configured.planned() == {"evaluate_exits"} | AFTER_POINTS


def test_another_router_width_repeats_routers_and_what_follows(configured):
    configured.config["tasks"]["tiny"]["router"]["width"] = 8
    repeated = {"router", "evaluate"} | ABOUT_MODELS | LOAD_MAPS | TOKEN_LOAD
    assert configured.planned() == repeated | AFTER_EXPERTS


def test_another_alpha_repeats_from_sparsification_on(configured):
    configured.config["tasks"]["tiny"]["sparsify"]["alpha"] = 0.02
    expected = {"sparsify", "clustering", "router", "evaluate"} | ABOUT_MODELS
    expected |= LOAD_MAPS | TOKEN_LOAD | ACTIVITY
    assert configured.planned() == expected | AFTER_EXPERTS


def test_another_rate_of_the_imitation_repeats_the_variant_that_imitates(configured):
    configured.config["tasks"]["tiny"]["projections"]["lr"] = 0.05
    plan = configured.counted(*SUITES)
    once = dict.fromkeys(("projections", "sparsify", "clustering", "router", "evaluate"), 1)
    assert {rule: plan[rule] for rule in once} == once
    assert plan.keys() == once.keys() | ABOUT_MODELS | ACTIVITY | AFTER_EXPERTS


@pytest.mark.parametrize(
    ("method", "evaluation", "change", "trainings"),
    [
        ("ztw", "evaluate_exits", {"lr": 0.001}, 1),
        ("avit", "evaluate_halting", {"prior_weight": 0.2}, 2),
    ],
)
def test_another_option_of_a_baseline_repeats_that_baseline_alone(
    configured, method, evaluation, change, trainings
):
    configured.config["tasks"]["tiny"][method].update(change)
    plan = configured.counted(*SUITES)
    assert plan[method] == plan[evaluation] == trainings
    told = {"fairness"} if "lr" in change else set()
    beside = {"neighbours_table", *DRAWN["neighbours"]}  # of Dyn-Adapter
    assert plan.keys() == {method, evaluation} | told | ABOUT_MODELS | AFTER_POINTS | beside


def test_another_compressed_model_repeats_its_conversion_alone(configured):
    configured.config["tasks"]["tiny"]["bases"]["student"]["epochs"] = 4
    plan = configured.counted(*SUITES)
    once = ("distill", "finetune", "sparsify", "clustering", "router", "evaluate", "figure_12")
    assert {rule: plan[rule] for rule in once} == dict.fromkeys(once, 1)
    assert not plan.keys() & {"prune", "quantize", "dense", "figure_4", "figure_9d", "fairness"}


# Edits of the code; which stage depends on which module, tests/unit/test_plan.py says


EVERY_FIGURE_OF_POINTS = {*FROM_TRADEOFF, *(name for names in DRAWN.values() for name in names)}
EDITED = {
    "kernels/persistent.py": set(EVALUATIONS)
    | AFTER_EXPERTS
    | LOAD_MAPS
    | EVERY_FIGURE_OF_POINTS
    | {"neighbours_table"},
    "figures/activity.py": {"figure_2b"},
    "methods/ztw/exits.py": {"ztw", "evaluate_exits", "wall_times"}
    | AFTER_POINTS
    | {"neighbours_table", *DRAWN["neighbours"]},
}


@pytest.mark.parametrize("module", EDITED)
def test_an_edit_of_a_module_repeats_what_uses_it_and_what_follows(finished, module):
    with finished.edited(module, lambda text: text + "\nADDED = 1\n"):
        assert finished.planned(*SUITES) == EDITED[module]


def test_comments_and_docstrings_repeat_nothing(finished):
    def reworded(text: str) -> str:
        return text.replace('"""', '"""Reworded. ', 1) + "\n# A comment.\n"

    with finished.edited("sparsity.py", reworded):
        assert finished.planned(*SUITES) == set()


# Interruptions and errors


def test_a_killed_training_resumes_to_the_same_bytes(finished, tmp_path):
    """kill -9 in the middle of training; the next call continues and gives identical results."""
    workspace = Workspace(tmp_path / "project")
    model = workspace.plan.line("main", "tiny", "d2dmoe").step_of("sparsify").model
    process = subprocess.Popen(
        workspace.command(model),
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

    workspace.make("--unlock")
    workspace.make(model, "--config", "runtime={log_every_s: 2}")  # comes as text
    (log,) = workspace.find("logs/models/tiny/seed-0/dense-*/dense.log")
    assert "dense continues after step" in log.read_text()
    (record,) = workspace.find("benchmarks/jobs/models/tiny/seed-0/dense-*/dense.json")
    assert len(json.loads(record.read_text())["attempts"]) == 2
    _assert_same_results(workspace, finished)
    assert not workspace.find(".state/*")  # removed on success


def _state_step(path: Path) -> int:
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


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGED = {
    "models/tiny/seed-0/dense-*/model.safetensors": _truncated,
    "tables/tiny/fairness.csv": _flipped,
}


def test_a_damaged_input_is_named_before_use_and_the_rest_stays(finished):
    whole = {path: path.read_bytes() for name in DAMAGED for path in finished.find(name)}
    names = [str(path.relative_to(finished.folder)) for path in whole]
    written = {path: path.stat().st_mtime_ns for path in finished.find("**/*.*")}
    dense = finished.plan.line("main", "tiny", "dense").evaluation("test")
    targets = [dense, "results/tables/fairness.csv"]  # one reads the model, the other the table
    before = [(finished.folder / target).read_bytes() for target in targets]
    try:
        for (path, content), change in zip(whole.items(), DAMAGED.values(), strict=True):
            path.write_bytes(change(content))
            os.utime(path, ns=(written[path], written[path]))  # as a failing disk would
        verified = finished.run("verify").stdout
        result = finished.run(*targets, "--force", "--keep-going", "--keep-incomplete")
        assert result.returncode != 0 and "Traceback" not in result.stdout
        for name in names:
            assert f"{name} is damaged" in verified and f"{name} is damaged" in result.stdout
        assert result.stdout.count("Delete it and run the same command again") >= len(names)
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
            os.utime(path, ns=(written[path], written[path]))
    finished.make(*targets)
    assert [(finished.folder / target).read_bytes() for target in targets] == before
    for path, time_ns in written.items():  # all is as it was
        os.utime(path, ns=(time_ns, time_ns))
    assert finished.planned(*SUITES) == set()


def test_all_results_are_as_their_jobs_left_them(finished):
    assert "are as their jobs left them" in finished.make("verify")


def test_random_flips_in_results_of_all_kinds_are_named(finished):
    command = [sys.executable, str(ROOT / "tools/flip_bytes.py"), "--flips", "90"]
    flips = subprocess.run(
        command, cwd=finished.folder, env=finished.environment, capture_output=True, text=True
    )
    assert flips.returncode == 0, flips.stdout + flips.stderr
    assert "90 flips, 0 of them used in silence" in flips.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsify": {"alfa": 0.1}}, "did you mean 'alpha'?"),  # a value by itself
        ({"ztw": {"epochs": 2}}, "every variant must get the same number of steps"),  # several
        ({"data": {"source": "path:nowhere"}}, "nowhere"),  # what is not there
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
    finished.make(*SUITES, "--report", "report.html")
    html = (finished.folder / "report.html").read_text()
    for figure in ("figure_4", "figure_7", "ablation_routers"):
        assert f"{figure}.png" in html
    assert "multiply" in html
    assert "results/explorer/main.html" in html


def test_snakefiles_are_formatted_and_lint_finds_only_the_missing_containers(finished):
    """The environment is the project's own, by uv; so rules name no container."""
    files = ["Snakefile", *map(str, sorted(ROOT.glob("rules/*.smk")))]
    snakefmt = Path(sys.executable).with_name("snakefmt")
    subprocess.run([snakefmt, "--check", *files], cwd=ROOT, check=True, capture_output=True)
    lint = finished.run("--lint").stdout
    remarks = [line for line in lint.splitlines() if line.startswith("    * ")]
    assert all("Specify a conda environment or container" in r for r in remarks), remarks
