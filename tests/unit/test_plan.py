"""Laws of the plan: what tables, figures, claims and benchmarks read, and which edit repeats what.

All of it without Snakemake, which only asks.
"""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import machinery
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from small import others_later
from small_config import RATES, with_everything, with_language

from d2dmoe.activations import ACTIVATIONS, Activation
from d2dmoe.claims import CLAIMS
from d2dmoe.claims.evidence import evidence_of
from d2dmoe.config.task import SUITES
from d2dmoe.config.variant import DENSE_VARIANTS
from d2dmoe.errors import ConfigError
from d2dmoe.figures import FIGURES, WALL_CLOCK, by_key
from d2dmoe.lookup import module_of, resolve
from d2dmoe.methods import EVALUATIONS, METHODS
from d2dmoe.models import ARCHITECTURES
from d2dmoe.plan import benchmarks, claims, digest, tables
from d2dmoe.plan.digest import Use, imported_modules
from d2dmoe.plan.figures import Request, apart, folder_of, table_path, task_figures
from d2dmoe.plan.lineage import Lineage, Step
from d2dmoe.plan.plan import Plan, load_plan, model_uses, routed_uses
from d2dmoe.plan.variants import has_experts, rate
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES
from d2dmoe.significance import statistics
from d2dmoe.sparsity import PENALTIES
from d2dmoe.stages import STAGES, Stage

ROOT = Path(__file__).parents[2]
MAIN, ABLATIONS, COMPATIBILITY, NEIGHBOURS = SUITES
CONVERTED = {
    "sparse",
    "sparser",
    "static",
    "random",
    "moefication",
    "attention",
}  # of the main suite


@pytest.fixture
def plan(raw, root) -> Plan:
    """Of every method, suite, compressed model and trial, with two seeds."""
    return load_plan(with_everything(raw), root)


@pytest.fixture
def of_language(raw, root) -> Plan:
    """Of a language model, with BoolQ, beside a task of images."""
    language = with_language(raw, "gpt2")["tasks"]["tiny"]
    language["boolq"] = {"variants": ["sparse"], "budgets": [1.0, 0.5], "limit": 7}
    raw["tasks"]["text"] = language
    return load_plan(raw, root)


@pytest.fixture(scope="module")
def tiny() -> Plan:
    """Of the configuration that the workflow's tests run; without trials, which are jobs of the
    same kinds."""
    raw = yaml.safe_load((ROOT / "tests/workflow/tiny.yaml").read_text())
    raw["tasks"]["tiny"].pop("tuning")
    return load_plan(raw, ROOT)


def lines_of(plan: Plan) -> list[Lineage]:
    suites = [line for suite in SUITES for line in plan.lineages[suite]]
    return suites + [line for _rate, line in plan.trials]


# The plan itself.


def test_a_folder_that_no_variant_leads_to_is_an_error_that_names_the_remedy(plan):
    with pytest.raises(ConfigError) as caught:
        plan.step("results/models/tiny/seed-0/dense-e1-00000000")
    message = str(caught.value)
    assert "results/models/tiny/seed-0/dense-e1-00000000" in message
    assert "results/models.csv" in message and "`snakemake models`" in message


def test_every_stage_is_found_by_its_folder(plan):
    for line in lines_of(plan):
        for step in line.steps:
            assert plan.step(step.folder) == step


def test_a_dataset_is_found_by_its_folder(of_language):
    for name, task in of_language.config.tasks.items():
        assert of_language.dataset(of_language.data_folder(name)) == task.data
    with pytest.raises(ConfigError, match="results/data/tiny/other"):
        of_language.dataset("results/data/tiny/other")


def test_a_variant_stands_for_its_first_seed(raw, root):
    raw["seeds"] = [3, 1]
    plan = load_plan(raw, root)
    assert plan.line(MAIN, "tiny", "sparse").seed == 3
    assert {line.seed for line in plan.lines(MAIN, "tiny")} == {1, 3}


def test_files_of_a_dataset_are_its_description_and_the_splits_asked_for(plan):
    folder = plan.data_folder("tiny")
    files = [f"{folder}/{name}.safetensors" for name in ("train", "validation", "test")]
    assert plan.data_files(folder) == [f"{folder}/dataset.json", *files]
    assert plan.data_files(folder, ["test"]) == [f"{folder}/dataset.json", files[-1]]


@pytest.mark.workflow
def test_the_plan_needs_neither_torch_nor_figures_nor_snakemake():
    """So that a call of the workflow begins in a second."""
    code = (
        "import sys, yaml; from pathlib import Path\n"
        "from d2dmoe.plan import benchmarks, claims, explorer, publishing, tables\n"
        "from d2dmoe.plan.plan import load_plan\n"
        f"root = Path({str(ROOT)!r})\n"
        "plan = load_plan(yaml.safe_load((root / 'tests/workflow/tiny.yaml').read_text()), root)\n"
        "publishing.files(plan), publishing.config_text(plan), plan.published_code()\n"
        "tables.all_results(plan), claims.claim_options(plan, 'main'), benchmarks.results(plan)\n"
        "[plan.stage_code(step) for step in plan.steps.values()], plan.claims_code()\n"
        "explorer.files(plan, 'main'), explorer.suites_in(plan, root)\n"
        "lines = plan.lineages['main']\n"
        "[plan.evaluation_code(line.how, line.last, line.knob) for line in lines]\n"
        "heavy = ('torch', 'numpy', 'pandas', 'matplotlib', 'transformers', 'snakemake')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


# Tables.


def about(line: Lineage) -> tuple:
    return line.task, line.method.name, line.variant, line.seed


def named(entries: Iterable[dict[str, Any]]) -> list[tuple]:
    """What the rows of entries belong to."""
    return [tuple(e[key] for key in ("task", "method", "variant", "seed")) for e in entries]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_tradeoff_has_the_points_of_every_variant_and_seed(plan, suite, split):
    entries = tables.points(plan, suite, "tiny", split)
    lines = plan.lines(suite, "tiny")
    assert named(entries) == [about(line) for line in lines] and len(lines) > 4
    for entry, line in zip(entries, lines, strict=True):
        assert entry["path"] == f"{line.folder}/evaluate/{split}/{line.knob}.csv"
        assert (entry["model"], entry["dataset"]) == ("vit-2x16", "images")
        assert entry["reference"] == (line.variant in DENSE_VARIANTS)
    of_one_seed = [e for e in entries if e["seed"] == 0]
    assert sum(entry["reference"] for entry in of_one_seed) == 2


@pytest.mark.parametrize("suite", SUITES)
def test_what_became_of_samples_is_kept_of_every_variant_on_validation_and_test(plan, suite):
    entries, lines = tables.outcomes(plan, suite, "tiny"), plan.lines(suite, "tiny")
    assert named(entries) == [about(line) for line in lines]
    for entry, line in zip(entries, lines, strict=True):
        for split in ("validation", "test"):
            path = line.evaluation(split).removesuffix(".csv")
            assert entry[split] == f"{path}.safetensors"
        assert entry["reference"] == (line.variant in DENSE_VARIANTS)
    files = tables.outcome_files(plan, suite, "tiny")
    assert len(files) == 2 * len(entries) and {e["test"] for e in entries} <= {*files}


def test_variants_of_one_figure_are_compared_in_the_legends_order(plan):
    found = tables.pairs(plan, COMPATIBILITY, "tiny")
    figures = plan.task("tiny").figures_of(COMPATIBILITY)
    assert figures.pruned == ["sparse", "pruned", "pruned_sparse"]
    of_one = [("sparse", "pruned"), ("sparse", "pruned_sparse"), ("pruned", "pruned_sparse")]
    assert set(of_one) <= {*found} and len(found) == len({*found})
    options = claims.statistics_options(plan, COMPATIBILITY, "tiny")
    assert options["pairs"] == [list(pair) for pair in found]
    assert options["bases"] == claims.claim_options(plan, COMPATIBILITY)["tiny"]["bases"]
    assert yaml.safe_load(yaml.safe_dump(options)) == options
    assert inspect.signature(statistics).bind(
        tables.outcomes(plan, COMPATIBILITY, "tiny"), **options
    )


def test_a_suite_without_two_variants_in_a_figure_compares_nothing(raw, root):
    raw["tasks"]["tiny"]["figures"] = {"tradeoff": ["sparse"]}
    plan = load_plan(raw, root)
    assert tables.pairs(plan, MAIN, "tiny") == []
    assert "comparisons" not in tables.task_tables(plan, MAIN, "tiny")


def test_trials_and_nothing_else_are_kept_from_test_samples(plan):
    shown = {line.folder for suite in SUITES for line in plan.lineages[suite]}
    tried = {line.folder for _rate, line in plan.trials}
    assert tried - shown and tried & shown  # the chosen rate's are both
    assert {Path(folder).name for folder in tried - shown} == {*plan.trial_folders}
    assert not {Path(folder).name for folder in shown} & {*plan.trial_folders}


def test_what_is_measured_of_a_variant_is_how_its_knob_is_measured(plan):
    hows = {line.variant: line.how.name for line in lines_of(plan)}
    assert {hows[x] for x in CONVERTED} == {"evaluate"}
    of_others = [hows[x] for x in ("dense", "dense_finetuned", "pruned", "int8", "ztw", "avit")]
    assert of_others == ["evaluate_dense"] * 4 + ["evaluate_exits", "evaluate_halting"]
    for line in lines_of(plan):
        assert line.knob in line.how.knobs


@pytest.mark.parametrize("suite", SUITES)
def test_the_dense_points_are_those_of_the_main_suite(plan, suite):
    entries = tables.dense_points(plan, suite, "tiny")
    dense = ("dense", "dense_finetuned")
    assert named(entries) == [("tiny", "dense", x, seed) for seed in (0, 1) for x in dense]


@pytest.mark.parametrize("suite", SUITES)
def test_layers_and_activity_are_of_models_with_experts(plan, suite):
    lines = [line for line in plan.lines(suite, "tiny") if METHODS[line.method.name].experts]
    if suite == MAIN:
        assert {line.variant for line in lines} == CONVERTED
    layers, activity = (f(plan, suite, "tiny") for f in (tables.layers, tables.activity))
    assert named(layers) == [about(line) for line in lines]
    for line, of_layers in zip(lines, layers, strict=True):
        assert of_layers["path"] == f"{line.folder}/evaluate/test/{line.knob}_layers.csv"
    sparse = [line for line in lines if "sparsify" in [s.stage.name for s in line.steps]]
    assert named(activity) == [about(line) for line in sparse]
    assert (len(sparse) < len(lines)) == (suite == NEIGHBOURS)
    for line, of_activity in zip(sparse, activity, strict=True):
        sparsified = line.step_of("sparsify").folder
        assert of_activity["path"] == f"{sparsified}/activity/test.csv"


def test_the_table_of_neighbours_is_of_the_variants_that_their_figure_compares(plan):
    entries = tables.neighbours(plan, NEIGHBOURS, "tiny")
    assert [e["variant"] for e in entries] == plan.task("tiny").neighbours.figures.neighbours
    found = {e["variant"]: (e["label"], e["training_free"], e["epochs"]) for e in entries}
    total = plan.task("tiny").epochs
    assert found["sparse"] == ("D2DMoE", False, total)
    assert found["cats"] == ("CATS", True, total)  # as the model has that it begins with
    assert found["chess"] == ("CHESS", True, plan.task("tiny").sparsify.epochs)
    assert tables.neighbours(plan, MAIN, "tiny") == []


def test_the_load_of_patches_is_of_the_variant_that_is_drawn(plan):
    line = plan.line(MAIN, "tiny", "sparse")
    (entry,) = tables.patch_load(plan, MAIN, "tiny")
    assert entry == {"path": f"{line.folder}/load_maps/dynamic_k.csv"} | line.labels
    assert entry["seed"] == 0


def test_the_load_of_tokens_is_of_the_variant_whose_maps_are_drawn_at_all_its_points(plan):
    line = plan.line(MAIN, "tiny", "sparse")
    (entry,) = tables.token_load(plan, MAIN, "tiny")
    assert entry == {"path": f"{line.folder}/token_load/dynamic_k.csv"} | line.labels
    options = tables.token_load_options(plan, "tiny", line.knob)
    task = plan.task("tiny")
    assert options == {
        "values": task.select.dynamic_k,
        "samples": task.figures.load_maps.images,
    }


def test_the_load_of_tokens_is_of_a_text_tasks_first_variant_that_a_rule_routes(raw, root):
    plan = load_plan(with_language(raw, "gpt2"), root)
    (entry,) = tables.token_load(plan, MAIN, "tiny")
    routed = [x for x in tables.conversions(plan, MAIN, "tiny") if x.knob in RULES]
    assert entry == {"path": f"{routed[0].folder}/token_load/{routed[0].knob}.csv"} | (
        routed[0].labels
    )
    assert tables.token_load_options(plan, "tiny", routed[0].knob)["samples"] == tables.TEXTS


def test_images_without_load_maps_have_no_load_of_tokens(raw, root):
    raw = with_everything(raw)
    del raw["tasks"]["tiny"]["figures"]["load_maps"]
    plan = load_plan(raw, root)
    assert tables.token_load(plan, MAIN, "tiny") == []
    assert "token_load" not in tables.task_tables(plan, MAIN, "tiny")


def test_fairness_counts_every_training_after_the_dense_model(plan):
    entries = tables.fairness(plan, "tiny")
    lines = [line for line in plan.lines(MAIN, "tiny") if line.variant != "dense"]
    assert named(entries) == [about(line) for line in lines]
    task = plan.task("tiny")
    for entry, line in zip(entries, lines, strict=True):
        assert entry["lr"] == rate(task, line.variant)
        assert entry["rates"] == task.tuning.get(line.variant, [entry["lr"]])
        assert entry["about"] == f"{plan.data_folder('tiny')}/dataset.json"
        assert [s["stage"] for s in entry["stages"]] == [s.stage.name for s in line.steps[1:]]
        dense = task.epochs if line.variant == "ztw" else 0  # of the model that gets its heads
        assert sum(stage["epochs"] for stage in entry["stages"]) == task.epochs + dense
    tuned, own = (next(e for e in entries if e["variant"] == x) for x in ("sparse", "static"))
    assert tuned["rates"] == RATES and own["rates"] == [0.001]
    clustering = {"epochs": 0.0, "batch_size": 1}  # it trains nothing
    (stage,) = (s for s in own["stages"] if s["stage"] == "clustering")
    assert clustering.items() <= stage.items()


def test_wall_times_are_those_of_every_job_behind_a_row_of_fairness(plan):
    entries, records = tables.wall_times(plan, "tiny"), tables.job_records(plan, "tiny")
    rows = tables.fairness(plan, "tiny")
    assert named(entries) == named(rows)
    assert [len(entry["records"]) for entry in entries] == [len(row["stages"]) for row in rows]
    assert records == sorted({record for entry in entries for record in entry["records"]})
    made = {
        tables.job_record(step.folder, step.stage.name)
        for line in plan.lines(MAIN, "tiny")
        for step in line.steps[1:]
    }
    assert set(records) == made


def test_logs_and_records_lie_as_their_results_do():
    folder = "results/models/tiny/seed-0/dense-e1-0a1b2c3d"
    place = "models/tiny/seed-0/dense-e1-0a1b2c3d/dense"
    assert tables.job_log(folder, "dense") == f"results/logs/{place}.log"
    assert tables.job_record(folder, "dense") == f"results/benchmarks/jobs/{place}.json"


def test_trials_are_told_by_their_rates_on_validation_samples(plan):
    entries = tables.tuning(plan, "tiny")
    assert named(entries) == [about(line) for _rate, line in plan.trials]
    for entry, (tried, line) in zip(entries, plan.trials, strict=True):
        assert entry["path"] == line.evaluation("validation") and entry["lr"] == tried
        assert entry["chosen"] == (tried == rate(plan.task("tiny"), line.variant))
    tried = [e["lr"] for e in entries if e["variant"] == "sparse" and e["seed"] == 0]
    assert tried == RATES


def test_tables_of_all_tasks_are_of_the_tasks_that_have_them(plan, of_language):
    path = "results/tables/tiny/tradeoff.csv"
    assert tables.of_tasks(plan, MAIN, "tradeoff") == [{"path": path}]
    assert tables.of_tasks(plan, MAIN, "tuning") == [{"path": "results/tables/tiny/tuning.csv"}]
    path = "results/tables/ablations/tiny/layers.csv"
    assert tables.of_tasks(plan, ABLATIONS, "layers") == [{"path": path}]
    assert tables.of_tasks(of_language, MAIN, "tuning") == []
    assert tables.of_tasks(of_language, ABLATIONS, "layers") == []
    for table in (
        "tradeoff",
        "validation",
        "layers",
        "activity",
        "summary",
        "fairness",
        "wall_times",
    ):
        paths = [f"results/tables/{task}/{table}.csv" for task in ("tiny", "text")]
        assert [e["path"] for e in tables.of_tasks(of_language, MAIN, table)] == paths
    for task, table in {"tiny": "patch_load", "text": "reference"}.items():
        (entry,) = tables.of_tasks(of_language, MAIN, table)
        assert entry == {"path": f"results/tables/{task}/{table}.csv"}


def test_a_corpus_that_is_streamed_is_too_large_to_count_words_in(raw, root):
    raw = with_language(raw, "gpt2")
    assert "reference" in tables.task_tables(load_plan(raw, root), MAIN, "tiny")
    raw["tasks"]["tiny"]["data"] |= {"streaming": True, "tokenizer": {"source": "hub:some/set"}}
    assert "reference" not in tables.task_tables(load_plan(raw, root), MAIN, "tiny")


# Targets.


OF_SUITES = {"tradeoff", "summary", "comparisons", "layers", "activity"}
TABLES = OF_SUITES | {"patch_load", "token_load", "fairness", "wall_times"}
DRAWN = {  # of tiny.yaml, by suite
    MAIN: {"figure_4", "figure_2a", "figure_2b", "figure_2c", "figure_8a", "figure_8b"}
    | {"figure_9a", "figure_9b"},
    ABLATIONS: {
        *("ablation_routers", "ablation_clusterings", "ablation_router_widths"),
        *("ablation_extended", "figure_9d"),
    },
    COMPATIBILITY: {"figure_6", "figure_7", "figure_12"},
    NEIGHBOURS: {"neighbours_cost", "neighbours_parameters"},
}


def tables_and_figures(suite: str, names: Iterable[str], task: str = "") -> set[str]:
    folder = f"{folder_of(suite)}{task and task + '/'}"
    figures = DRAWN[suite] if task else ()
    return {f"results/tables/{folder}{name}.csv" for name in names} | {
        f"results/figures/{folder}{name}.{end}" for name in figures for end in ("png", "pdf")
    }


def test_all_makes_the_main_suite_the_list_of_models_and_the_figures_of_all_tasks(tiny):
    found = tables.all_results(tiny)
    expected = tables_and_figures(MAIN, TABLES | {"claims"})
    expected |= tables_and_figures(MAIN, TABLES, "tiny") | {"results/models.csv"}
    expected |= {"results/explorer/main.html"}
    for figure in ("figure_3", "figure_4", "figure_10", "saved_share", "differences"):
        expected |= {f"results/figures/{figure}.{end}" for end in ("png", "pdf")}
    assert set(found) == expected and len(found) == len(expected)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_makes_its_tables_figures_and_claims(tiny, suite):
    found = tables.suite_results(tiny, suite)
    names = TABLES if suite == MAIN else OF_SUITES | ({"neighbours"} & {suite})
    expected = tables_and_figures(suite, names | {"claims"})
    expected |= tables_and_figures(suite, names, "tiny")
    assert set(found) == expected and len(found) == len(expected)


@pytest.mark.parametrize("suite", SUITES)
def test_a_task_makes_its_own_part_of_a_suite(tiny, suite):
    found = set(tables.task_results(tiny, suite, "tiny"))
    assert found == {path for path in tables.suite_results(tiny, suite) if "tiny" in path}


def test_a_suite_that_no_task_has_a_part_in_makes_nothing_of_tasks(of_language):
    for suite in SUITES[1:]:
        assert of_language.tasks_of(suite) == [] and of_language.lineages[suite] == []


# Figures.


def requests(plan: Plan) -> Iterator[tuple[Any, str, str | None, Request]]:
    """Every figure that is drawn, for its suite and task, and what it asks for."""
    for suite in SUITES:
        for task in plan.tasks_of(suite):
            for name in task_figures(plan, suite, task):
                figure = FIGURES[name]
                yield figure, suite, task, resolve(figure.request)(plan, suite, task, figure)
    for figure in FIGURES.values():
        if figure.overall:
            yield figure, MAIN, None, resolve(figure.request)(plan, MAIN, None, figure)


def test_every_figure_is_drawn_of_what_is_made_and_gets_what_its_function_takes(tiny, plan):
    asked = 0
    for of in (tiny, plan):
        made = {f"{x.folder}/load_maps/{x.knob}.safetensors" for x in of.lineages[MAIN]}
        made |= {f"{of.data_folder(task)}/dataset.json" for task in of.config.tasks}
        for suite in SUITES:
            made |= {path for path in tables.suite_results(of, suite) if path.endswith(".csv")}
        for figure, _suite, _task, request in requests(of):
            assert set(request.inputs.values()) <= made, figure.name
            inspect.signature(resolve(figure.draw)).bind(**request.inputs, **request.arguments)
            assert yaml.safe_load(yaml.safe_dump(request.arguments)) == request.arguments
            asked += 1
    assert asked > 30


def test_the_tiny_configuration_draws_every_figure_of_the_table(tiny):
    drawn = {figure.name for figure, *_ in requests(tiny)}
    assert FIGURES.keys() - drawn == {"figure_16", "figure_9c"}  # further panels, further bases


def test_a_curve_is_of_the_variants_that_the_task_names_in_the_tasks_words(raw, root):
    raw["tasks"]["tiny"]["figures"]["labels"] = {"base_sparsity": {"sparser": "α = 0.2"}}
    plan = load_plan(raw, root)
    figure = FIGURES["figure_2a"]
    request = resolve(figure.request)(plan, MAIN, "tiny", figure)
    assert request.inputs == {"tradeoff": "results/tables/tiny/tradeoff.csv"}
    panel = {
        "labels": {"sparse": "D2DMoE", "sparser": "α = 0.2"},
        "looks": {"sparse": 0, "sparser": 1},
        "title": "tiny",
        "metric": "accuracy",
        "task": "tiny",
        "training_free": [],
        "variants": ["sparse", "sparser"],
    }
    assert request.arguments == {"panels": [panel], "title": "Sparsity of the base model"}


def test_a_panel_says_which_of_its_variants_train_nothing(plan):
    figure = FIGURES["figure_7"]
    request = resolve(figure.request)(plan, COMPATIBILITY, "tiny", figure)
    (panel,) = request.arguments["panels"]
    assert panel["variants"] == ["int8", "sparse_int8"] and panel["training_free"] == ["int8"]


def test_methods_that_train_nothing_have_a_panel_apart(plan):
    figure, shown = FIGURES["neighbours_cost"], plan.task("tiny").neighbours.figures.neighbours
    (panel,) = apart(plan, NEIGHBOURS, "tiny", figure).arguments["panels"]
    assert panel["variants"] == shown == ["sparse", "cats", "chess", "teal", "carved"]
    shown.append("fewer")
    free, trained = apart(plan, NEIGHBOURS, "tiny", figure).arguments["panels"]
    assert free["variants"] == panel["variants"] and trained["variants"] == ["sparse", "fewer"]
    assert free["title"].endswith("trained no further") and trained["title"].endswith(", trained")


def test_the_figure_of_all_tasks_has_a_panel_for_each(of_language):
    figure = FIGURES["figure_4"]
    request = resolve(figure.request)(of_language, MAIN, None, figure)
    assert request.inputs == {"tradeoff": "results/tables/tradeoff.csv"}
    panels = [(panel["task"], panel["metric"]) for panel in request.arguments["panels"]]
    assert panels == [("tiny", "accuracy"), ("text", "loss")]


def test_what_is_saved_is_drawn_of_the_conversions_of_figure_4(of_language, raw, root):
    figure = FIGURES["saved_share"]
    request = resolve(figure.request)(of_language, MAIN, None, figure)
    tables_ = ("summary", "tradeoff", "layers")
    assert request.inputs == {name: f"results/tables/{name}.csv" for name in tables_}
    drawn = {row["task"]: row["variants"] for row in request.arguments["rows"]}
    for task, variants in drawn.items():
        compared = of_language.task(task).figures.tradeoff
        assert variants == [x for x in compared if has_experts(of_language.task(task), x)]
    assert drawn.keys() == of_language.config.tasks.keys()
    raw["tasks"] = {"tiny": with_everything(raw)["tasks"]["tiny"]}
    raw["tasks"]["tiny"]["figures"]["tradeoff"] = ["ztw"]
    request = resolve(figure.request)(load_plan(raw, root), MAIN, None, figure)
    assert request == Request({}, {"rows": []})


def test_differences_are_drawn_where_something_is_compared(of_language, raw, root):
    figure = FIGURES["differences"]
    request = resolve(figure.request)(of_language, MAIN, None, figure)
    assert request.inputs == {"comparisons": "results/tables/comparisons.csv"}
    drawn = {panel["task"]: panel["variants"] for panel in request.arguments["panels"]}
    tasks = of_language.config.tasks.items()
    assert drawn == {x: y.figures.tradeoff for x, y in tasks if len(y.figures.tradeoff) > 1}
    raw["tasks"] = {"tiny": with_everything(raw)["tasks"]["tiny"]}
    raw["tasks"]["tiny"]["figures"]["tradeoff"] = ["ztw"]
    request = resolve(figure.request)(load_plan(raw, root), MAIN, None, figure)
    assert request.inputs == {} and request.arguments["panels"] == []


def test_figures_of_a_suite_read_its_own_tables(plan):
    figure = FIGURES["figure_6"]
    request = resolve(figure.request)(plan, COMPATIBILITY, "tiny", figure)
    assert request.inputs == {"tradeoff": "results/tables/compatibility/tiny/tradeoff.csv"}
    (panel,) = request.arguments["panels"]
    assert panel["variants"] == ["sparse", "pruned", "pruned_sparse"]
    assert panel["labels"]["pruned"] == "pruned"
    assert panel["labels"]["pruned_sparse"] == "pruned, ours"


def test_panels_of_layers_are_of_the_operating_points_asked_for(plan):
    figure = FIGURES["figure_8a"]
    request = resolve(figure.request)(plan, MAIN, "tiny", figure)
    assert request.inputs == {"layers": "results/tables/tiny/layers.csv"}
    labels = {"sparse": "D2DMoE"}
    compared = {"labels": labels, "looks": {"sparse": 0}, "task": "tiny", "title": "tiny"}
    compared["variants"] = ["sparse"]
    assert request.arguments == compared | {"values": [0.0, 0.5]}


def test_load_maps_are_drawn_of_a_models_own_file(plan):
    figure = FIGURES["figure_8b"]
    request = resolve(figure.request)(plan, MAIN, "tiny", figure)
    folder = plan.line(MAIN, "tiny", "sparse").folder
    assert request == Request(
        {
            "load_maps": f"{folder}/load_maps/dynamic_k.safetensors",
            "dataset": f"{plan.data_folder('tiny')}/dataset.json",
        },
        {"title": "tiny", "point": "D2DMoE, τ = 0.5"},
    )


def test_a_task_draws_the_figures_that_it_describes_in_the_tables_order(plan):
    for suite in SUITES:
        drawn = plan.task("tiny").figures_of(suite).of_figures()
        names = [figure.name for key, figure in by_key().items() if key in drawn]
        assert task_figures(plan, suite, "tiny") == names and names


def test_tables_of_suites_lie_apart():
    assert table_path(MAIN, "layers") == "results/tables/layers.csv"
    assert table_path(ABLATIONS, "layers", "tiny") == "results/tables/ablations/tiny/layers.csv"
    paths = [table_path(suite, "layers", task) for suite in SUITES for task in ("", "x")]
    assert len({*paths}) == len(paths)


# Claims.


@pytest.mark.parametrize("suite", SUITES)
def test_claims_are_decided_by_tables_that_the_suite_makes(plan, suite):
    found = claims.claim_tables(plan, suite)
    assert {"tradeoff", "summary", "comparisons", "layers", "activity"} <= found.keys()
    assert ("patch_load" in found) == (suite == MAIN) and "token_load" not in found
    assert set(found.values()) <= set(tables.suite_results(plan, suite))
    assert found == {name: table_path(suite, name) for name in sorted(found)}


def test_claims_get_what_makes_their_evidence(plan):
    for suite in SUITES:
        options = claims.claim_options(plan, suite)
        assert list(options) == ["tiny"]
        signature = inspect.signature(evidence_of)
        signature.bind("tiny", claims.claim_tables(plan, suite), **options["tiny"])
        assert options["tiny"]["metric"] == "accuracy"
        assert yaml.safe_load(yaml.safe_dump(options)) == options


def test_claims_know_the_variants_that_convert_attention_projections(plan):
    found = {suite: claims.claim_options(plan, suite)["tiny"]["projections"] for suite in SUITES}
    assert found == {MAIN: ["attention"], ABLATIONS: [], COMPATIBILITY: [], NEIGHBOURS: []}


def test_a_compressed_model_stands_beside_its_conversion(plan):
    bases = {suite: claims.claim_options(plan, suite)["tiny"]["bases"] for suite in SUITES}
    assert bases[MAIN] == bases[ABLATIONS] == bases[NEIGHBOURS] == {}
    assert bases[COMPATIBILITY] == {
        "pruned": {"converted": "pruned_sparse", "references": ["pruned", "pruned_finetuned"]},
        "student": {"converted": "student_sparse", "references": ["student", "student_finetuned"]},
        "int8": {"converted": "sparse_int8", "references": ["int8"]},
    }


def test_only_the_papers_method_is_what_a_compressed_model_is_converted_by(raw, root):
    raw = with_everything(raw)
    other = {"method": "moefication", "label": "x", "base": "pruned", "select": "coverage"}
    raw["tasks"]["tiny"]["compatibility"]["variants"]["z_last"] = other
    bases = claims.claim_options(load_plan(raw, root), COMPATIBILITY)["tiny"]["bases"]
    assert bases["pruned"]["converted"] == "pruned_sparse"


def test_claims_know_what_other_suites_draw(plan):
    elsewhere = claims.claim_options(plan, ABLATIONS)["tiny"]["elsewhere"]
    assert elsewhere.keys() == {MAIN, COMPATIBILITY, NEIGHBOURS}
    assert elsewhere[COMPATIBILITY] == ["distilled", "pruned", "quantized"]
    assert elsewhere[MAIN] == sorted(plan.task("tiny").figures.of_figures())


def test_a_suite_without_a_task_has_no_claims(of_language):
    assert claims.claim_options(of_language, ABLATIONS) == {}
    assert claims.claim_tables(of_language, ABLATIONS) == {}


# Benchmarks.


LAYER = {"tokens": 9, "d_model": 16, "num_experts": 8, "expert_size": 2}


@pytest.fixture
def timed(raw, root) -> Plan:
    """With benchmarks of every table, one of which follows a model's selections."""
    layers = {"cpu": {"small": LAYER}, "gpu": {"a": LAYER, "b": LAYER | {"masks": ["converted"]}}}
    own = {"num_experts": 8, "batches": [1]}
    model = {"vit": own | {"model": raw["tasks"]["tiny"]["model"], "size": 8}}
    decode = {"ffn": own | {"kind": "ffn", "layers": 2, "d_model": 16, "d_ff": 32}}
    masks = {"task": "tiny", "variant": "static", "values": [8], "samples": 2}
    raw["benchmarks"] = layers | {"models": model, "decode": decode, "masks": masks}
    return load_plan(raw, root)


def test_every_benchmark_has_a_table_of_its_entries(timed):
    assert benchmarks.configured(timed) == ["cpu", "layer", "model", "decode"]
    paths = [f"results/benchmarks/layer/{entry}.csv" for entry in ("a", "b")]
    assert [entry["path"] for entry in benchmarks.entries(timed, "layer")] == paths
    assert benchmarks.entries(timed, "cpu") == [{"path": "results/benchmarks/cpu/small.csv"}]


def test_masks_are_read_where_an_entry_follows_them_and_made_of_the_variant(timed):
    assert benchmarks.masks(timed, "layer", "a") == benchmarks.masks(timed, "cpu", "small") == []
    path = "results/benchmarks/masks.safetensors"
    assert benchmarks.masks(timed, "layer", "b") == [path]
    line = benchmarks.masks_line(timed)
    assert (line.variant, line.knob, line.seed) == ("static", "top_k", 0)
    assert line == timed.line(MAIN, "tiny", "static")


@pytest.mark.parametrize("gpu", [False, True])
def test_what_needs_a_gpu_is_left_out_where_there_is_none(timed, monkeypatch, gpu):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/nvidia-smi" if gpu else None)
    tables_ = ["cpu", "layer", "model", "decode"] if gpu else ["cpu"]
    assert benchmarks.timed_here(timed) == tables_
    layers = [f"results/benchmarks/{name}.csv" for name in tables_ if name in ("cpu", "layer")]
    assert benchmarks.timed_layers(timed) == layers
    figures = [f"results/figures/benchmarks/{name}.png" for name in tables_]
    assert benchmarks.results(timed) == [*figures, "results/benchmarks/claims.csv"]


def test_layers_of_other_shapes_have_a_figure_of_their_own(raw, root, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    other = LAYER | {"expert_size": 4}
    raw["benchmarks"] = {"gpu": {"a": LAYER, "b": other}}
    results = benchmarks.results(load_plan(raw, root))
    names = ("figures/benchmarks/layer", "figures/benchmarks/layer_appendix")
    assert results == [f"results/{x}.png" for x in names] + ["results/benchmarks/claims.csv"]


def test_without_benchmarks_nothing_is_timed(plan, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert benchmarks.configured(plan) == benchmarks.results(plan) == []


# BoolQ.


def test_boolq_is_asked_of_dense_models_and_the_variants_named(of_language):
    entries = tables.boolq(of_language)
    variants = ("dense", "dense_finetuned", "sparse")
    assert [(e["task"], e["variant"], e["seed"]) for e in entries] == [
        ("text", variant, seed) for seed in (0, 1) for variant in variants
    ]
    folder = of_language.line(MAIN, "text", "sparse").folder
    assert entries[2]["path"] == f"{folder}/boolq/dynamic_k.csv"
    assert tables.all_results(of_language).count("results/tables/boolq.csv") == 1


def test_boolq_reads_the_model_and_its_and_the_dense_points_on_validation_samples(of_language):
    line = of_language.line(MAIN, "text", "sparse")
    data = of_language.data_folder("text")
    assert tables.boolq_inputs(of_language, line.last, line.knob) == {
        "model": f"{line.folder}/model.safetensors",
        "tokenizer": f"{data}/tokenizer.json",
        "points": f"{line.folder}/evaluate/validation/dynamic_k.csv",
        "dense": f"{line.steps[0].folder}/evaluate/validation/dense.csv",
        "data": [f"{data}/dataset.json", f"{data}/validation.safetensors"],
        "questions": [],
    }


def test_boolq_of_a_dense_model_has_its_own_cost_only(of_language):
    line = of_language.line(MAIN, "text", "sparse")
    options = tables.boolq_options(of_language, line.last, line.knob)
    same = {"batch_size": 250, "limit": 7, "source": "hub:google/boolq"}
    assert options == same | {"budgets": [1.0, 0.5]}
    dense = of_language.line(MAIN, "text", "dense")
    assert tables.boolq_options(of_language, dense.last, dense.knob) == same | {"budgets": [1.0]}


def test_questions_of_a_file_are_an_input(raw, root):
    raw = with_language(raw, "gpt2")
    (root / "mine.jsonl").touch()
    raw["tasks"]["tiny"]["boolq"] = {"variants": ["sparse"], "source": "path:mine.jsonl"}
    plan = load_plan(raw, root)
    line = plan.line(MAIN, "tiny", "sparse")
    assert tables.boolq_inputs(plan, line.last, line.knob)["questions"] == "mine.jsonl"


# Which code a job depends on. Paths are relative to src/d2dmoe.


def files(folder: str, names: str) -> set[str]:
    return {f"{folder}{name}.py" for name in names.split()}


JOB = files("", "errors extensions lookup") | files("io/", "checksums csvfile files header tensors")
JOB |= files(
    "jobs/", "attempts device environment job launch memory names progress record run shards"
)
JOB |= files("config/", "resources strict") | {"jobs/state.py", "processes.py"}
MODEL = JOB | files("", "activations attention checkpoint ffn registration spec surgery")
MODEL |= {"pooling.py", "stand_ins.py", "router_kinds.py"}  # attention's losses
MODEL |= files("models/", "__init__ build") | {"stages/__init__.py"}
MODEL |= files("config/", "augment model named strict training")
TRAINING = MODEL | files("data/", "augment batches image_sources pictures share splits vendored")
TRAINING |= files("", "inputs optimizer quality seeding training") | {"stages/fitting.py"}
TRAINING |= {"config/sources.py", "data/share.py", "distributed.py", "graphed.py", "pooling.py"}
SPARSE = TRAINING | {"config/stages.py", "padding.py", "sparsity.py"}
EXPERTS = files("", "backend conversion moe pooling router selection selection_rules weights")
COMPRESSION, METHOD = {"config/compression.py"}, {"config/variant.py"}  # their options
THRESHOLDS = MODEL | METHOD | {"config/stages.py", "config/trained.py", "stages/drawn.py"}
THRESHOLDS |= files("data/", "augment image_sources pictures share splits vendored")
THRESHOLDS |= files("methods/thresholds/", "calibration layers options")
THRESHOLDS |= files("", "inputs padding seeding") | {"config/sources.py"}
EXITS = {"methods/early_exits/leaving.py"}
OF_A_STAGE = {  # what it depends on, beside its architecture and what earlier stages left
    "dense": TRAINING | {"config/stages.py", "stages/dense.py"},
    "finetune": TRAINING | {"config/stages.py", "stages/dense.py"},
    "prune": TRAINING
    | COMPRESSION
    | {"stages/prune.py", "stages/drawn.py"}
    | files("compression/", "importance prune"),
    "distill": TRAINING | COMPRESSION | {"stages/distill.py", "compression/distill.py"},
    "projections": SPARSE | {"stages/projections.py"},
    "sparsify": SPARSE | {"stages/sparsify.py"},
    "clustering": MODEL
    | EXPERTS
    | files("", "balanced_kmeans experts inputs seeding")
    | {"config/stages.py", "stages/clustering.py"},
    "router": TRAINING | EXPERTS | {"config/stages.py", "padding.py", "stages/router.py"},
    "tune": TRAINING | EXPERTS | {"config/stages.py", "padding.py", "stages/tune.py"},
    "ztw": TRAINING | METHOD | EXITS | files("methods/ztw/", "exits options training"),
    "avit": TRAINING | METHOD | files("methods/avit/", "halting options training"),
    "thresholds": THRESHOLDS
    | files("", "balanced_kmeans experts")
    | {"methods/thresholds/hidden.py"},
    "input_thresholds": THRESHOLDS | files("methods/thresholds/", "greedy inputs"),
    "cmoe": TRAINING
    | EXPERTS - {"conversion.py"}
    | METHOD
    | {"balanced_kmeans.py", "config/trained.py", "padding.py", "stages/drawn.py"}
    | files("methods/cmoe/", "carving options router training"),
    "factorllm": TRAINING
    | EXPERTS - {"conversion.py"}
    | METHOD
    | {"balanced_kmeans.py", "experts.py", "padding.py"}
    | files("methods/factorllm/", "layer losses options training"),
    "dyn_adapter": TRAINING
    | METHOD
    | EXITS
    | files("methods/dyn_adapter/", "adapters options training"),
    "seer": TRAINING
    | EXPERTS
    | METHOD
    | {"padding.py", "stages/drawn.py"}
    | files("methods/seer/", "options pruning training"),
    "sam": TRAINING
    | EXPERTS
    | METHOD
    | {"balanced_kmeans.py", "experts.py", "padding.py"}
    | files("methods/sam/", "grouping losses options training"),
    "ldpruner": TRAINING
    | METHOD
    | {"config/trained.py", "stages/drawn.py"}
    | files("methods/ldpruner/", "options ranking removal training"),
    "sensitivity": MODEL
    | EXPERTS - {"conversion.py"}
    | METHOD
    | files("data/", "augment image_sources pictures splits vendored")
    | files("", "inputs padding seeding sensitivity")
    | {"config/sources.py", "config/stages.py", "stages/drawn.py"}
    | files("methods/adapmoe/", "calibration options"),
    "quantize": MODEL
    | EXPERTS - {"conversion.py"}
    | COMPRESSION
    | {"stages/quantize.py", "compression/quantize.py"},
}
LEFT = {  # the code of what a stage leaves in models, for those after it
    "prune": {"compression/prune.py"},
    "projections": SPARSE | {"stages/projections.py"},
    "sparsify": SPARSE | {"stages/sparsify.py"},
    "clustering": EXPERTS,
    "router": EXPERTS,
}
LOSSES = {
    "regression": set(),
    "root_regression": set(),
    "classification": {"methods/moefication.py"},
}
DATA = JOB - files("io/", "csvfile") - {"lookup.py"}
DATA |= files("config/", "data sources strict")
DATA |= files("data/", "text_files text_sources text_splits tokenizer vendored")
DATASET = DATA | files("data/", "image_sources images pictures prepare tokens")
TOKENIZER = (
    DATA - files("io/", "header tensors") - files("jobs/", "device launch memory run shards state")
)
TOKENIZER -= {"config/resources.py"}
NEVER = ("kernels/", "figures/", "claims/", "benchmark/", "plan/", "downstream.py", "evaluation.py")
NEVER += ("activity.py", "flops.py", "formulas.py", "methods/__init__.py")


class Watched(Plan):
    """A plan that gives the files behind a digest in its place."""

    def code(self, script: str, uses: Iterable[Use] | None = None) -> set[str]:
        src = self.root / "src"
        modules = {name for use in uses or () for name in use.modules}
        found = imported_modules(self.root / "scripts" / f"{script}.py", src, modules)
        return {str(path.relative_to(src / "d2dmoe")) for path in found}


@pytest.fixture
def watched(plan) -> Watched:
    return Watched(plan.config, ROOT)


def of_step(step: Step) -> set[str]:
    """What a step depends on."""
    left = (LEFT.get(s.stage.name, set()) for s in step.steps[:-1])
    found = OF_A_STAGE[step.stage.name].union(*left)
    found |= {f"models/{name}.py" for name in step.architectures}
    return found | LOSSES.get(getattr(step.cfg, "kind", ""), set())


def test_a_stage_depends_on_nothing_but_what_it_needs(watched):
    """An edit of anything else does not train it anew."""
    seen = set()
    for step in watched.steps.values():
        found, needed = watched.stage_code(step), of_step(step)
        assert found == needed, f"{step.folder}: {found - needed} beside, without {needed - found}"
        seen.add(step.stage.name)
    assert seen == STAGES.keys() == OF_A_STAGE.keys()


def test_a_stage_depends_on_its_own_function_and_on_what_rebuilds_its_parents(watched):
    for step in watched.steps.values():
        references = [step.stage.make, step.stage.options, *(s.stage.rebuild for s in step.steps)]
        modules = [module_of(reference) for reference in references if reference]
        assert {f"{name.replace('.', '/')}.py"[7:] for name in modules} <= watched.stage_code(step)


def others(stage: Stage) -> tuple[str, ...]:
    """Where the code of methods lies that have not this stage."""
    packages = {path.parent.name for path in (ROOT / "src/d2dmoe/methods").glob("*/plan.py")}
    return tuple(f"methods/{x}/" for x in packages if f".methods.{x}." not in stage.make)


@pytest.mark.workflow
def test_no_training_depends_on_kernels_figures_claims_the_plan_or_another_method(watched):
    for step in watched.steps.values():
        code = watched.stage_code(step)
        found = {x for x in code if x.startswith(NEVER + others(step.stage))}
        assert not found, f"{step.folder}: {sorted(found)}"
        assert not code & files("config/", "experiment task figures select explain")  # of all tasks


def test_neither_do_activity_datasets_and_tokenizers(watched):
    step = watched.line(MAIN, "tiny", "sparse").step_of("sparsify")
    counting = OF_A_STAGE["sparsify"] | {"activity.py", "stages/activity.py", "models/vit.py"}
    assert watched.model_code("activity", step) == counting
    assert watched.code("dataset") == DATASET
    assert watched.code("tokenizer") == TOKENIZER


def test_a_benchmark_depends_on_the_architecture_of_its_model_alone(watched):
    """Each has a module of its own, so no two digests are alike."""
    plan = Plan(watched.config, ROOT)
    entries = [SimpleNamespace(model=SimpleNamespace(architecture=x)) for x in ARCHITECTURES]
    codes = {plan.benchmark_code("benchmark_model", entry) for entry in entries}
    assert len(codes) == len(ARCHITECTURES)


@pytest.mark.workflow
def test_an_evaluation_depends_on_its_own_methods_code_alone(watched):
    for line in lines_of(watched):
        code = watched.evaluation_code(line.how, line.last, line.knob)
        found = {x for x in code if x.startswith(("figures/", "claims/", "benchmark/", "plan/"))}
        found |= {x for x in code if x.startswith(others(line.last.stage))}
        assert not found, f"{line.variant}: {sorted(found)}"
        assert f"{module_of(line.how.measure).replace('.', '/')}.py"[7:] in code
        assert ("methods/moefication.py" in code) is False  # a loss measures nothing


def test_only_the_architectures_on_a_models_way_count(raw, root):
    raw = with_everything(raw)
    raw["tasks"]["text"] = with_language(raw, "bert")["tasks"]["tiny"]
    for key in ("bases", "compatibility", "avit", "tuning"):
        del raw["tasks"]["text"][key]
    del raw["tasks"]["text"]["variants"]["avit"]
    raw["tasks"]["text"]["figures"]["tradeoff"].remove("avit")
    plan = load_plan(raw, root)
    watched = Watched(plan.config, ROOT)
    for step in watched.steps.values():
        own = {"models/vit.py"} if step.task == "tiny" else {"models/bert.py"}
        found = {
            x for x in watched.stage_code(step) if re.fullmatch(r"models/(?!_|build|pre).*", x)
        }
        assert found == own


# The activations that a model may have.


def activations_of(plan: Plan, step: Step) -> set[str]:
    """The names of the activations that a stage's model counts as its own."""
    found = [use.record for use in model_uses(step) if isinstance(use.record, Activation)]
    return {record.name for record in found}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, {"gelu", "relu"}),  # sparsification brings ReLU
        ({"activation": "quick_gelu"}, {"quick_gelu", "relu"}),
        ({"activation": "relu"}, {"relu"}),
        ({"weights": "path:weights.safetensors"}, {*ACTIVATIONS}),  # whose activation is unknown
        ({"weights": "path:weights.safetensors", "activation": "silu"}, {*ACTIVATIONS}),
    ],
)
def test_a_models_activations_are_those_that_its_options_tell(raw, root, changes, found):
    (root / "weights.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    raw["tasks"]["tiny"]["model"] |= changes
    plan = load_plan(raw, root)
    for step in plan.steps.values():
        assert activations_of(plan, step) == found


def test_an_architectures_own_activation_is_that_of_its_record(of_language, monkeypatch):
    step = of_language.line(MAIN, "text", "sparse").last
    assert activations_of(of_language, step) == {"gelu_tanh", "relu"}
    monkeypatch.setitem(ARCHITECTURES, "gpt2", replace(ARCHITECTURES["gpt2"], activation=None))
    assert activations_of(of_language, step) == {*ACTIVATIONS}  # unknown


@pytest.mark.parametrize("mode", PENALTIES)
def test_the_activation_that_a_penalty_brings_is_among_them(raw, root, mode):
    raw["tasks"]["tiny"]["sparsify"]["mode"] = mode
    plan = load_plan(raw, root)
    step = plan.line(MAIN, "tiny", "sparse").step_of("sparsify")
    assert {PENALTIES[mode].activation or "gelu"} <= activations_of(plan, step)


def test_a_students_and_its_teachers_activations_both_count(raw, root):
    raw = with_everything(raw)
    raw["tasks"]["tiny"]["bases"]["student"]["model"]["activation"] = "silu"
    plan = load_plan(raw, root)
    step = plan.line(COMPATIBILITY, "tiny", "student_sparse").last
    assert activations_of(plan, step) == {"gelu", "silu", "relu"}


# Which edit repeats what: over all jobs of the configuration that the workflow's tests run.


TIMED = ("benchmark_layer", "benchmark_model", "benchmark_decode")
GATHERED = ("gather", "tradeoff", "summary", "reference", "fairness", "wall_times", "tuning")
GATHERED += ("models", "neighbours", "publish")
MEASURED = {*EVALUATIONS, "load_maps", "boolq", "benchmark_masks"}  # what runs models with kernels
WATCHED = ("activity", "token_load")  # what runs models as PyTorch does
CLAIMED = ("claims", "benchmark_claims")
DRAWINGS = (*FIGURES, WALL_CLOCK.name)
Job = tuple[str, str]  # a rule, and what the job is of


@dataclass(frozen=True)
class Asked:
    """A job: its rule, the digest of its code, and the model and the knob that it is of."""

    rule: str
    code: Any
    step: Step | None = None
    knob: str | None = None

    @property
    def stages(self) -> set[str]:
        """That the model went through."""
        return {s.stage.name for s in self.step.steps} if self.step else set()

    @property
    def regresses(self) -> bool:
        """Whether the model has routers of the paper's kind."""
        return self._router == "regression"

    @property
    def classifies(self) -> bool:
        """Whether it has MoEfication's."""
        return self._router == "classification"

    @property
    def _router(self) -> str | None:
        steps = self.step.steps if self.step else ()
        return next((s.cfg.kind for s in steps if s.stage.name == "router"), None)


BY_TAU = ("dynamic_k", "layer_budget", "true_norms")  # knobs of models that dynamic-k routes
BY_K = ("top_k", "factors", "active", "grouped")  # those of models that top-k routes


def jobs(plan: Plan) -> dict[Job, Asked]:
    """Every job, as the rules ask for it; BoolQ and masks of any conversion, though the
    configuration asks for none."""
    found: dict[Job, Asked] = {}

    def ask(rule: str, code: Any, step: Step | None = None, knob: str | None = None) -> None:
        found[rule, f"{step.folder if step else ''}/{knob or ''}"] = Asked(rule, code, step, knob)

    for step in plan.steps.values():
        ask(step.stage.name, plan.stage_code(step), step)
    for line in lines_of(plan):
        of = line.last, line.knob
        ask(line.how.name, plan.evaluation_code(line.how, *of), *of)
        if line.method.experts:
            for sparse in (step for step in line.steps if step.stage.name == "sparsify"):
                ask("activity", plan.model_code("activity", sparse), sparse)
            for script in ("load_maps", "token_load", "boolq", "benchmark_masks"):
                ask(script, plan.model_code(script, *of), *of)
    for script in ("dataset", "tokenizer", "benchmark_claims", *TIMED, *GATHERED):
        ask(script, plan.code(script))
    for figure in (*FIGURES.values(), WALL_CLOCK):
        ask(figure.name, plan.figure_code(figure))
    ask("claims", plan.claims_code())
    return found


def test_these_are_all_jobs_that_the_rules_know():
    rules = "".join(path.read_text() for path in ROOT.glob("rules/*.smk"))
    asked = set(re.findall(r'code\(\s*"(\w+)"', rules)) - {"explorer", "published_explorer"}
    known = {"activity", "load_maps", "token_load", "boolq", "benchmark_masks", "dataset"}
    known |= {"tokenizer", "benchmark_claims", *TIMED, *GATHERED}
    assert asked == known
    kinds = ("", "model_", "stage_", "evaluation_", "figure_", "claims_", "benchmark_")
    kinds += ("published_", "explorer_")
    assert set(re.findall(r"PLAN\.(\w*)code\(", rules)) == {*kinds}
    known |= {"train", "convert", "evaluate", "figure", "claims", "unused", "verify"}
    known |= {"published", "explorer", "published_explorer"}  # which read the whole plan
    assert {path.stem for path in ROOT.glob("scripts/*.py")} == known


def forget() -> None:
    """What the digest has read."""
    for function in vars(digest).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


class Copy:
    """A copy of the code, in which files are edited for a while."""

    def __init__(self, folder: Path, plan: Plan):
        for part in ("src", "scripts"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        self.package, self.plan = folder / "src/d2dmoe", Plan(plan.config, folder)
        self.before = self.jobs()
        self.files = {job: x.code for job, x in jobs(Watched(plan.config, ROOT)).items()}

    def jobs(self) -> dict[Job, Asked]:
        """As a new process would ask for them."""
        forget()
        return jobs(replace(self.plan))

    @contextmanager
    def edited(self, pattern: str, change: Callable[[str], str]) -> Iterator[None]:
        texts = {path: path.read_text() for path in sorted(self.package.glob(pattern))}
        assert texts, pattern
        try:
            for path, text in texts.items():
                path.write_text(change(text))
            yield
        finally:
            for path, text in texts.items():
                path.write_text(text)

    def repeated(
        self, pattern: str, change: Callable[[str], str] = lambda text: f"{text}\nEDIT = 1\n"
    ) -> set[Job]:
        """The jobs that an edit of all files of a pattern repeats."""
        with self.edited(pattern, change):
            return self.changed(self.jobs())

    def changed(self, after: dict[Job, Asked]) -> set[Job]:
        return {job for job, asked in self.before.items() if after[job].code != asked.code}

    def of_rules(self, *rules: str) -> set[Job]:
        return {job for job in self.before if job[0] in rules}

    def of(self, condition: Callable[[Asked], bool]) -> set[Job]:
        """The jobs of models of which a condition holds."""
        return {job for job, asked in self.before.items() if asked.step and condition(asked)}

    def of_files(self, file: str) -> set[Job]:
        """The jobs that import a file of the package."""
        return {job for job, found in self.files.items() if file in found}


@pytest.fixture(scope="module")
def code(tiny, tmp_path_factory) -> Iterator[Copy]:
    parse, known = digest._read.__wrapped__, {}

    @cache
    def read(path: Path) -> Any:
        """As the digest does, but a text that was read before is not parsed again."""
        text = path.read_text()
        if text not in known:
            known[text] = parse(path)
        return known[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "_read", read)
        yield Copy(tmp_path_factory.mktemp("code"), tiny)
    forget()


def test_a_copy_of_the_code_has_the_same_digests(code, tiny):
    assert not code.changed(jobs(tiny)) and len(code.before) > 100


KERNELS = sorted(path.stem for path in (ROOT / "src/d2dmoe/kernels").glob("[a-z]*.py"))
BY_HAND = {"calibration", "tuning"}  # no job calls them


@pytest.mark.parametrize("kernel", others_later(KERNELS, KERNELS[:2]))
def test_an_edit_of_a_kernel_repeats_just_what_measures_models_and_layers(code, kernel):
    routed = ["token_load"] if kernel == "activations" else []  # which the models' records name
    expected = set() if kernel in BY_HAND else code.of_rules(*MEASURED, *TIMED, *routed)
    assert code.repeated(f"kernels/{kernel}.py") == expected


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("pattern", "rules"),
    [
        ("methods/early_exits/*.py", ("ztw", "dyn_adapter", "evaluate_exits")),
        ("methods/avit/*.py", ("avit", "evaluate_halting")),
        ("methods/early_exits/evaluation.py", ("evaluate_exits",)),
        ("methods/avit/evaluation.py", ("evaluate_halting",)),
        ("methods/thresholds/hidden.py", ("thresholds",)),
        ("methods/thresholds/greedy.py", ("input_thresholds",)),
        ("methods/thresholds/evaluation.py", ("evaluate_density",)),
        ("methods/*/plan.py", ()),
        ("methods/checks.py", ()),
        ("methods/quantized/*.py", ()),
        ("methods/conversion/*.py", ("claims",)),  # which says what the methods' own rules are
        ("plan/*.py", ()),
        ("claims/[a-z]*.py", CLAIMED),
        ("benchmark/*.py", TIMED),
        ("models/gemma.py", ()),
        ("models/gpt2.py", ()),
        ("models/bert.py", ()),
        ("models/pretrained.py", ()),
        ("compression/distill.py", ("distill",)),
        ("stages/activity.py", ("activity",)),
        ("stages/token_load.py", ("token_load",)),
        ("activity.py", ("activity",)),
        ("significance.py", ("summary",)),
        ("profiles.py", ("summary",)),
        ("bootstrap.py", ("summary", *CLAIMED)),
        ("curve.py", ("summary", "fairness", "wall_times", "tuning")),
        ("stages/downstream.py", ("boolq",)),
        ("stages/masks.py", ("benchmark_masks",)),
        ("stages/reference.py", ("reference",)),
        ("fairness.py", ("fairness", "wall_times", "tuning")),
        ("data/tokenizer.py", ("dataset", "tokenizer")),
        ("experts.py", ("clustering", "factorllm", "thresholds", "sam")),
        ("balanced_kmeans.py", ("clustering", "cmoe", "factorllm", "thresholds", "sam")),
        ("methods/sam/locality.py", ("evaluate_grouped",)),
        ("methods/sam/losses.py", ("sam",)),
        ("methods/factorllm/evaluation.py", ("evaluate_factors",)),
        ("methods/factorllm/losses.py", ("factorllm",)),
        ("methods/dyn_adapter/training.py", ("dyn_adapter",)),
        ("methods/seer/evaluation.py", ("evaluate_active",)),
        ("methods/seer/training.py", ("seer",)),
        ("methods/cmoe/carving.py", ("cmoe",)),
        ("methods/ldpruner/ranking.py", ("ldpruner",)),
        ("methods/adapmoe/[a-z]*.py", ("sensitivity",)),
        ("flops.py", MEASURED - {"benchmark_masks"}),
        ("formulas.py", {"figure_10", "saved_share", *MEASURED - {"benchmark_masks"}}),
        ("figures/style.py", DRAWINGS),
        ("models/vit.py", (*STAGES, *WATCHED, *MEASURED)),
    ],
)
def test_an_edit_repeats_just_the_jobs_of_the_rules_that_use_it(code, pattern, rules):
    assert code.repeated(pattern) == code.of_rules(*rules)


def test_an_edit_of_moefications_loss_repeats_just_the_classification_routers(code):
    trained = code.of(lambda x: x.rule == "router" and x.classifies)
    assert code.repeated("methods/moefication.py") == trained
    assert trained and trained < code.of_rules("router")


@pytest.mark.workflow
@pytest.mark.parametrize("module", sorted({module_of(f.draw) for f in FIGURES.values()}))
def test_an_edit_of_a_figures_module_redraws_its_own_figures(code, module):
    own = [name for name, figure in FIGURES.items() if module_of(figure.draw) == module]
    path = f"{module.removeprefix('d2dmoe.').replace('.', '/')}.py"
    assert code.repeated(path) == code.of_rules(*own)


@pytest.mark.parametrize(
    "file", ["figures/tradeoff.py", "figures/wall_clock.py", "plan/figures.py"]
)
def test_an_edit_of_a_figure_or_of_what_it_is_drawn_of_redraws_the_published_ones(code, file):
    forget()
    before = replace(code.plan).published_code()
    with code.edited(file, lambda text: f"{text}\nEDIT = 1\n"):
        forget()
        assert replace(code.plan).published_code() != before


def test_an_edit_of_the_wall_clock_redraws_the_benchmarks_figures(code):
    assert code.repeated("figures/wall_clock.py") == code.of_rules("wall_clock")


@pytest.mark.workflow
def test_an_edit_of_what_a_stage_leaves_repeats_the_stage_and_what_reads_its_models(code):
    """Models that it did not make stay as they are."""
    assert code.repeated("compression/prune.py") == code.of(lambda x: "prune" in x.stages)
    for method in ("ztw", "dyn_adapter"):  # which are measured by one evaluation
        own = code.of(lambda x, stage=method: stage in x.stages)
        assert code.repeated(f"methods/{method}/*.py") == own


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("EPSILON = 1e-8", "EPSILON = 1e-7"),
        ('Penalty("relu_l1", "relu", l1)', 'Penalty("relu_l1", "relu", square_hoyer)'),  # a record
    ],
)
def test_an_edit_of_the_penalties_repeats_what_they_made_sparse_and_no_dense_training(
    code, old, new
):
    """And what rebuilds such models, whose code lies beside that of their training."""
    sparse = code.of(lambda x: bool(x.stages & {"sparsify", "projections"}))
    assert code.repeated("sparsity.py", lambda text: text.replace(old, new)) == sparse
    assert code.of_rules("sparsify", "projections", "activity") <= sparse
    untouched = ("dense", "finetune", "prune", "distill", "ztw", "avit", "evaluate_dense")
    assert not code.of_rules(*untouched) & sparse


# Records: a new one repeats nothing, another word in one repeats what uses it.


HOME = {  # where a table stands
    "STAGES": ("stages/__init__.py", STAGES),
    "METHODS": ("methods/__init__.py", METHODS),
    "EVALUATIONS": ("methods/__init__.py", EVALUATIONS),
    "ARCHITECTURES": ("models/__init__.py", ARCHITECTURES),
    "RULES": ("selection_rules.py", RULES),
    "ROUTER_KINDS": ("router_kinds.py", ROUTER_KINDS),
    "ACTIVATIONS": ("activations.py", ACTIVATIONS),
    "FIGURES": ("figures/__init__.py", FIGURES),
    "CLAIMS": ("claims/__init__.py", CLAIMS),
}
READ_WHOLE = {  # the rules whose jobs read a table as a whole
    "STAGES": ("benchmark_model", "benchmark_decode"),
    "METHODS": CLAIMED,
    "EVALUATIONS": ("benchmark_claims",),
    "ARCHITECTURES": TIMED,
    "RULES": (*TIMED, *DRAWINGS, "benchmark_claims"),
    "ROUTER_KINDS": TIMED,
    "ACTIVATIONS": TIMED,
    "FIGURES": (),
    "CLAIMS": CLAIMED,
}


@pytest.mark.workflow
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("table", HOME)
def test_a_new_record_repeats_no_stage_and_no_measurement(code, table, named, monkeypatch):
    """Whether it stands in its table, or beside it with a name of its own."""
    file, records = HOME[table]
    record = replace(next(iter(records.values())), name="new")
    if table == "EVALUATIONS":
        record = replace(record, knobs=("new",))

    def add(text: str) -> str:
        start = re.search(rf"^{table} = table_of\(\s*\[", text, re.MULTILINE)
        before, after = text[: start.start()], text[start.end() :]
        if named:
            return f"{before}NEW = {record!r}\n\n{start.group()}NEW, {after}"
        return f"{before}{start.group()}{record!r}, {after}"

    monkeypatch.setitem(records, "new", record)
    assert code.repeated(file, add) == code.of_rules(*READ_WHOLE[table])


def with_word(text: str, name: str, word: str, value: Any) -> str:
    """A table's file in which a record says something else."""
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    (call,) = (c for c in calls if isinstance(c.args[0], ast.Constant) and c.args[0].value == name)
    call.keywords = [keyword for keyword in call.keywords if keyword.arg != word]
    call.keywords.append(ast.keyword(word, ast.Constant(value)))
    return ast.unparse(tree)


OTHER = "d2dmoe.errors:UserError"  # a reference to code that every job has anyway


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("table", "name", "word", "value", "uses"),
    [
        ("STAGES", "prune", "rebuild", OTHER, lambda x: "prune" in x.stages),
        ("STAGES", "dense", "rebuild", OTHER, lambda x: True),
        ("STAGES", "ztw", "dense", True, lambda x: "ztw" in x.stages),
        ("STAGES", "router", "make", OTHER, lambda x: "router" in x.stages),
        ("STAGES", "quantize", "trains", None, lambda x: "quantize" in x.stages),
        ("ARCHITECTURES", "vit", "module", "d2dmoe.errors", lambda x: True),
        ("ARCHITECTURES", "bert", "module", "d2dmoe.errors", lambda x: False),
        ("ROUTER_KINDS", "regression", "loss", OTHER, lambda x: x.regresses),
        ("ROUTER_KINDS", "regression", "triton", OTHER, lambda x: x.regresses),
        ("ROUTER_KINDS", "classification", "loss", OTHER, lambda x: x.classifies),
        ("ROUTER_KINDS", "classification", "scores", OTHER, lambda x: x.classifies),
        ("RULES", "dynamic_k", "select", OTHER, lambda x: x.knob in BY_TAU),
        ("RULES", "top_k", "select", OTHER, lambda x: x.knob in BY_K),
        ("RULES", "top_k", "fused", True, lambda x: x.knob in BY_K),
        ("RULES", "coverage", "symbol", "c", lambda x: x.knob == "coverage"),
        ("ACTIVATIONS", "relu", "threshold", 1.0, lambda x: True),
        ("ACTIVATIONS", "gelu", "torch", OTHER, lambda x: True),
        ("ACTIVATIONS", "gelu_tanh", "threshold", 1.0, lambda x: False),
        ("EVALUATIONS", "evaluate_exits", "layers", True, lambda x: x.knob == "confidence"),
        ("EVALUATIONS", "evaluate_halting", "layers", None, lambda x: x.knob == "depth"),
        ("METHODS", "ztw", "rival", "another", lambda x: False),
        ("CLAIMS", "C3", "test", OTHER, lambda x: False),
    ],
)
def test_another_word_in_a_record_repeats_just_the_jobs_that_use_it(
    code, monkeypatch, table, name, word, value, uses
):
    file, records = HOME[table]
    monkeypatch.setitem(records, name, replace(records[name], **{word: value}))
    found = code.repeated(file, lambda text: with_word(text, name, word, value))
    assert found == code.of(uses) | code.of_rules(*READ_WHOLE[table])


def test_another_word_in_a_figures_record_redraws_it_alone(code, monkeypatch):
    monkeypatch.setitem(FIGURES, "figure_3", replace(FIGURES["figure_3"], draw=OTHER))
    assert code.changed(code.jobs()) == code.of_rules("figure_3")


def test_another_option_of_an_activation_repeats_the_models_that_have_it(of_language, monkeypatch):
    plan = replace(of_language, root=ROOT)
    before = {folder: plan.stage_code(step) for folder, step in plan.steps.items()}
    gelu = replace(ACTIVATIONS["gelu_tanh"], options={"approximate": "none"})
    monkeypatch.setitem(ACTIVATIONS, "gelu_tanh", gelu)
    found = {task: 0 for task in plan.config.tasks}
    for folder, step in plan.steps.items():
        found[step.task] += plan.stage_code(step) != before[folder]
    assert found == {"tiny": 0, "text": sum(s.task == "text" for s in plan.steps.values())}


@pytest.mark.workflow
@pytest.mark.parametrize("file", sorted({file for file, _ in HOME.values()}))
@pytest.mark.parametrize("edit", ["    new: int = 0\n", "\n\ndef new():\n    return 1\n"])
def test_what_else_a_tables_file_says_repeats_all_that_import_it(code, file, edit):
    """A field of its records, or a function."""

    def change(text: str) -> str:
        if edit.startswith("\n"):
            return f"{text}{edit}"
        end = re.search(r'^class \w+:\n    """.*?"""\n', text, re.MULTILINE | re.DOTALL).end()
        return f"{text[:end]}{edit}{text[end:]}"

    assert code.repeated(file, change) == code.of_files(file)


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("stages/__init__.py", (*STAGES, *WATCHED, *MEASURED, *TIMED[1:])),
        ("models/__init__.py", (*STAGES, *WATCHED, *MEASURED, *TIMED, "claims")),
        ("methods/__init__.py", CLAIMED),
        ("claims/__init__.py", CLAIMED),
        ("figures/__init__.py", ()),
    ],
)
def test_these_are_the_jobs_that_import_a_tables_file(code, file, rules):
    assert code.of_files(file) == code.of_rules(*rules)


# Extensions.


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A folder of a user's own modules: `own_code` imports `own_helper`."""
    (tmp_path / "own_code.py").write_text("from own_helper import f\n")
    (tmp_path / "own_helper.py").write_text("def f():\n    pass\n")
    (tmp_path / f"own_fast{machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF\xff")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def repeated_by_own(code: Copy, own: Path) -> set[Job]:
    """The jobs that an edit of `own_helper` repeats."""
    before = code.jobs()
    helper = own / "own_helper.py"
    helper.write_text(f"{helper.read_text()}\nEDIT = 1\n")
    return {job for job, asked in code.jobs().items() if asked.code != before[job].code}


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("table", "name", "reference", "uses"),
    [
        ("STAGES", "prune", "make", lambda x: x.rule == "prune"),
        ("STAGES", "sparsify", "options", lambda x: x.rule == "sparsify"),
        ("STAGES", "prune", "rebuild", lambda x: "prune" in x.stages),
        ("ARCHITECTURES", "vit", "module", lambda x: True),
        ("ROUTER_KINDS", "classification", "loss", lambda x: x.rule == "router" and x.classifies),
        ("ROUTER_KINDS", "classification", "scores", lambda x: x.classifies),
        ("ROUTER_KINDS", "regression", "triton", lambda x: x.knob and x.regresses),
        ("RULES", "top_k", "select", lambda x: x.knob in BY_K),
        ("ACTIVATIONS", "gelu", "torch", lambda x: True),
        ("ACTIVATIONS", "gelu", "triton", lambda x: x.knob),
        ("ACTIVATIONS", "silu", "torch", lambda x: False),
        ("EVALUATIONS", "evaluate_halting", "measure", lambda x: x.rule == "evaluate_halting"),
    ],
)
def test_an_extensions_code_counts_for_the_jobs_that_use_its_records(
    code, own, monkeypatch, table, name, reference, uses
):
    """With the module beside it; a record's words count wherever it is used, its code where a job
    may call it."""
    records = HOME[table][1]
    changed = {reference: "own_code" if reference == "module" else "own_code:f"}
    monkeypatch.setitem(records, name, replace(records[name], **changed))
    assert repeated_by_own(code, own) == code.of(uses)


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("table", "name", "reference", "rule"),
    [("FIGURES", "figure_3", "draw", "figure_3"), ("CLAIMS", "C3", "test", "claims")],
)
def test_so_does_what_draws_a_figure_or_decides_a_claim(
    code, own, monkeypatch, table, name, reference, rule
):
    records = HOME[table][1]
    monkeypatch.setitem(records, name, replace(records[name], **{reference: "own_code:f"}))
    assert repeated_by_own(code, own) == code.of_rules(rule)


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("records", "reference"), [(RULES, "select"), (ACTIVATIONS, "torch"), (ROUTER_KINDS, "scores")]
)
def test_an_option_of_a_stage_may_name_a_record_of_any_table(
    code, own, monkeypatch, records, reference
):
    """It then counts for all models that went through the stage."""
    record = replace(next(iter(records.values())), **{reference: "own_code:f"})
    named = {"method": {"kmeans": record, "random": record}}
    monkeypatch.setitem(STAGES, "clustering", replace(STAGES["clustering"], named=named))
    assert repeated_by_own(code, own) == code.of(lambda x: "clustering" in x.stages)


def test_an_option_that_names_nothing_uses_no_record(raw, root, monkeypatch):
    router = replace(STAGES["router"], named={"projection_width": ROUTER_KINDS})
    monkeypatch.setitem(STAGES, "router", router)
    plan = replace(load_plan(raw, root), root=ROOT)
    step = plan.line(MAIN, "tiny", "sparse").step_of("router")
    assert step.cfg.projection_width is None and len(plan.stage_code(step)) == 16
    records = [use.record for use in routed_uses(step, "dynamic_k")]
    assert not any(record in records for record in ROUTER_KINDS.values())


LIBRARIES = ("builtins:abs", "math:fabs", "_thread:lock", "numpy.linalg:norm", "own_fast:f")


@pytest.mark.parametrize("reference", others_later(LIBRARIES, ["own_fast:f"]))
def test_built_in_compiled_and_library_code_does_not_count(code, own, monkeypatch, reference):
    """The record's words do: other code is called."""

    def refer(records: dict[str, Any], name: str, *fields: str) -> None:
        record = replace(records[name], **dict.fromkeys(fields, reference))
        monkeypatch.setitem(records, name, record)

    refer(ROUTER_KINDS, "regression", "loss", "scores", "triton")
    refer(RULES, "top_k", "select")
    refer(ACTIVATIONS, "gelu", "torch", "triton")
    for job, asked in jobs(Watched(code.plan.config, ROOT)).items():
        assert asked.code <= code.files[job]
    assert code.changed(code.jobs()) == code.of(lambda x: True) | code.of_rules(*DRAWINGS)
