"""Laws of what the explorer's page holds: the tables' numbers, whatever is missing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_config import with_everything

from d2dmoe.errors import ConfigError, DataError
from d2dmoe.explorer.columns import columns
from d2dmoe.explorer.costs import Sizes, fit, split, split_dense
from d2dmoe.explorer.libraries import FOLDER, LIBRARIES, code
from d2dmoe.explorer.page import SCRIPTS, WEB, page
from d2dmoe.figures.style import MARKERS
from d2dmoe.formulas import Transformer, ffn_flops, router_flops
from d2dmoe.plan import publishing
from d2dmoe.plan.explored import own, published
from d2dmoe.plan.explorer import files, suites_in
from d2dmoe.plan.plan import Plan, load_plan

POINT = {"task": "tiny", "model": "vit", "dataset": "x", "params": 9, "metric": "accuracy"}


def table(values: dict) -> pd.DataFrame:
    return pd.DataFrame(values)


def unpacked(column) -> list:
    if isinstance(column, list):
        return column
    if "runs" in column:
        runs = zip(column["runs"][::2], column["runs"][1::2], strict=True)
        return [column["of"][place] for place, count in runs for _ in range(count)]
    return [column["of"][i] for i in column["at"]]


def test_a_packed_table_gives_its_cells_back():
    cells = {"text": ["a", "b"] * 4, "number": [0.1, 2.0] * 4, "all": [*range(8)]}
    cells["long"] = ["a"] * 5 + ["b"] + ["a"] * 2
    packed = columns(table(cells | {"none": [float("nan"), float("inf")] * 4}))
    assert {name: unpacked(packed[name]) for name in cells} == cells
    assert unpacked(packed["none"]) == [None] * 8
    assert "at" in packed["text"] and isinstance(packed["all"], list)
    assert packed["long"] == {"of": ["a", "b"], "runs": [0, 5, 1, 1, 0, 2]}
    assert packed["none"] == {"of": [None], "runs": [0, 8]}


# The parts of a cost.

SIZES = Sizes(layers=2, d_model=8, d_ff=32, gated=False, d_q=8, d_kv=8)
TOKENS, EXPERTS, WIDTH = 5, 4, 3
MODEL = Transformer(tokens=TOKENS, layers=2, d_model=8, d_ff=32, outside=77)
ROUTERS = TOKENS * 2 * router_flops(8, WIDTH, EXPERTS)


def measured(routers: float, replaced: float = 0.0, projection: float = 0.0):
    """Points and layers of a conversion of `MODEL`, by its true costs."""
    each = TOKENS * ffn_flops(8, 32 // EXPERTS)
    points, layers = [], []
    for place, tau in enumerate((0.0, 0.3, 0.6, 0.9)):
        executed = {"ffn": [4 - place, 4 - 0.5 * place], "o": [3.0 - 0.4 * place**2, 2.0]}
        if not projection:
            del executed["o"]
        flops = MODEL.flops - MODEL.ffns - replaced + routers + each * sum(executed["ffn"])
        flops += projection * sum(executed.get("o", []))
        points.append({"seed": 0, "knob_value": tau, "flops": flops})
        layers += [
            {"seed": 0, "knob_value": tau, "role": role, "layer": layer}
            | {"experts": experts, "num_experts": EXPERTS}
            for role, of_layers in executed.items()
            for layer, experts in enumerate(of_layers)
        ]
    return table(points), table(layers)


def test_the_parts_of_a_cost_are_those_that_it_was_made_of():
    found = fit(*measured(ROUTERS))
    assert found and found.ffns == pytest.approx(MODEL.ffns)
    parts = split(found, MODEL.flops, found.ffns, SIZES)["fixed"]
    attention = MODEL.flops - MODEL.ffns - 77
    assert parts == pytest.approx(
        {"routers": ROUTERS, "attention": attention, "embedding and head": 77}
    )
    dense = split_dense(MODEL.flops, found.ffns, SIZES)["fixed"]
    assert sum(dense.values()) == pytest.approx(MODEL.flops)


def test_projections_that_became_experts_leave_the_attention():
    replaced = 2 * TOKENS * 2 * 8 * 8
    found = fit(*measured(ROUTERS, replaced, projection=100.0))
    assert found and found.each == pytest.approx({"ffn": TOKENS * ffn_flops(8, 8), "o": 100})
    parts = split(found, MODEL.flops, found.ffns, SIZES)["fixed"]
    assert parts["routers"] == pytest.approx(ROUTERS)
    assert parts["attention"] == pytest.approx(MODEL.flops - MODEL.ffns - 77 - replaced)


@pytest.mark.parametrize(
    ("ffns", "sizes", "names"),
    [
        (1.0, None, {"routers", "attention, embedding and head"}),
        (2.0, SIZES, {"all else"}),  # converted from another model
    ],
)
def test_what_the_tables_do_not_tell_stays_together(ffns, sizes, names):
    found = fit(*measured(ROUTERS))
    assert found and split(found, MODEL.flops, ffns * found.ffns, sizes)["fixed"].keys() == names


def test_costs_that_are_not_linear_in_experts_have_no_parts():
    points, layers = measured(ROUTERS)
    assert fit(points.assign(flops=points["flops"] ** 2), layers) is None
    assert fit(points[:1], layers) is None


# Whole results.


@pytest.fixture
def plan(raw, root) -> Plan:
    return load_plan(with_everything(raw), root)


def points_of(plan: Plan, suite: str) -> pd.DataFrame:
    """A trade-off of all variants of a suite, whose numbers tell suites apart."""
    rows = [
        POINT
        | {key: line.labels[key] for key in ("method", "variant", "seed")}
        | {"knob": line.knob, "knob_value": None if line.knob == "dense" else 0.5}
        | {"flops": 100, "flops_ratio": 1, "value": 0.5, "relative_value": 1}
        for line in plan.lines(suite, "tiny")
    ]
    return pd.DataFrame(rows).drop_duplicates()[
        ["task", "model", "dataset", "method", "variant", "seed", "knob", "knob_value", "flops"]
        + ["flops_ratio", "params", "metric", "value", "relative_value"]
    ]


@pytest.fixture
def reference(plan, tmp_path) -> Path:
    """A published miniature that has one table of two suites."""
    folder = tmp_path / "reference/miniature"
    for suite, place in {"main": "tables", "ablations": "tables/ablations"}.items():
        (folder / place).mkdir(parents=True)
        points_of(plan, suite).to_csv(folder / place / "tradeoff.csv", index=False)
    (folder / "config.yaml").write_text(publishing.config_text(plan))
    return tmp_path / "reference"


def test_published_results_have_the_configurations_names_looks_and_commands(plan, reference):
    (scale,) = published(reference)["scales"]
    (task,) = scale["tasks"]
    variants = {variant["name"]: variant for variant in task["variants"]}
    assert task["chosen"] == ["sparse", "attention", "moefication", "ztw", "avit"]
    assert variants["attention"]["label"] == "attention too"
    assert variants["dense"]["look"]["colour"] == "" and variants["sparse"]["look"]["colour"]
    assert variants["wide"]["suite"] == "ablations" and variants["sparse"]["suite"] == "main"
    line = plan.line("main", "tiny", "sparse")
    assert variants["sparse"]["targets"]["0"] == [line.evaluation("test")]
    stages = [scale["stages"][place][0] for place in variants["sparse"]["stages"]]
    assert stages == [step.stage.name for step in line.steps]
    assert scale["command"].endswith("--configfile results/reference/miniature/config.yaml --")


def test_a_variant_of_several_suites_is_shown_once(plan, reference):
    (scale,) = published(reference)["scales"]
    packed = scale["tables"]["tradeoff"]
    rows = zip(*(unpacked(packed[x]) for x in ("variant", "seed", "knob_value")), strict=True)
    rows = [*rows]
    assert len(rows) == len({*rows})


def test_what_is_missing_is_said(reference):
    notes = published(reference)["scales"][0]["notes"]
    assert notes["layers"].startswith(
        "There is no layers.csv in results/reference/miniature/tables"
    )
    assert (
        "tradeoff" not in notes and {"summary", "claims", "activity", "token_load"} <= notes.keys()
    )


def token_rows(variant: str = "sparse", **changes) -> pd.DataFrame:
    """Two texts at two operating points; tokens as a reader of CSV may mistake them."""
    rows = [
        {"task": "tiny", "method": "d2dmoe", "variant": variant, "seed": 0, "knob": "dynamic_k"}
        | {"knob_value": tau, "sample": sample, "position": position}
        | {"token": json.dumps(token), "experts": round(16 * (1 - tau)) - position}
        | {"num_experts": 16}
        for tau in (0.0, 0.5)
        for sample, tokens in enumerate((["NA", "1", ' "'], ["\n", ""]))
        for position, token in enumerate(tokens)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_the_load_of_tokens_is_the_tables(reference):
    token_rows().to_csv(reference / "miniature/tables/token_load.csv", index=False)
    (scale,) = published(reference)["scales"]
    assert scale["tokens"] == {
        "tiny": {
            "point": "D2DMoE, seed 0",
            "symbol": "τ",
            "values": [0.0, 0.5],
            "num_experts": 16,
            "experts": [[[16, 15, 14], [16, 15]], [[8, 7, 6], [8, 7]]],
            "texts": [["NA", "1", ' "'], ["\n", ""]],
        }
    }
    assert "token_load" not in scale["tables"] and "token_load" not in scale["notes"]


def test_patches_have_loads_and_no_texts(reference):
    token_rows(token="").to_csv(reference / "miniature/tables/token_load.csv", index=False)
    (scale,) = published(reference)["scales"]
    assert scale["tokens"]["tiny"]["texts"] == []


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (token_rows(token="{"), "tiny has a token"),
        (token_rows(token="5"), "tiny has a token 5 without quotes"),
        (token_rows()[:-1], "tiny lacks tokens"),
        (token_rows(experts="many"), "'many' in the column experts"),
    ],
)
def test_a_damaged_load_of_tokens_is_told(reference, rows, fault):
    rows.to_csv(reference / "miniature/tables/token_load.csv", index=False)
    with pytest.raises(DataError, match=f"token_load.csv is damaged: .*{fault}"):
        published(reference)


def test_without_a_configuration_variants_have_their_names(reference):
    (reference / "miniature/config.yaml").unlink()
    (scale,) = published(reference)["scales"]
    variants = {variant["name"]: variant for variant in scale["tasks"][0]["variants"]}
    assert variants["attention"]["label"] == "attention" and not scale["command"]
    assert variants["dense_finetuned"]["label"] == "dense, fine-tuned"
    assert "sparse" in scale["tasks"][0]["chosen"] and "wide" not in scale["tasks"][0]["chosen"]
    assert "configuration" in scale["notes"]["config"]


def test_of_a_suite_published_alone_its_longest_figure_is_chosen(reference):
    tables = reference / "miniature/tables"
    for path in tables.glob("*.csv"):
        path.unlink()
    (scale,) = published(reference)["scales"]
    assert scale["tasks"][0]["chosen"] == ["sparse", "binary"]


@pytest.mark.workflow
def test_a_table_of_another_version_leaves_its_view_out(reference):
    path = reference / "miniature/tables/layers.csv"
    path.write_text("task,variant\ntiny,sparse\n")
    scale = published(reference)["scales"][0]
    assert "it has no column method" in scale["notes"]["layers"] and "layers" not in scale["tables"]


@pytest.mark.workflow
def test_a_table_more_wide_keeps_its_columns(reference):
    path = reference / "miniature/tables/tradeoff.csv"
    pd.read_csv(path).assign(watts=7).to_csv(path, index=False)
    assert "watts" in published(reference)["scales"][0]["tables"]["tradeoff"]


def test_damage_and_nothing_are_told(reference, tmp_path):
    path = reference / "miniature/tables/tradeoff.csv"
    path.write_text(path.read_text().replace(",100,", ",many,", 1))
    with pytest.raises(DataError, match="damaged"):
        published(reference)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no published results"):
        published(tmp_path / "empty")
    (reference / "miniature/config.yaml").write_text("tasks: 3")
    with pytest.raises(ConfigError, match="no configuration of this version"):
        published(reference)


def test_own_results_are_of_one_suite(plan, reference, tmp_path):
    shutil.move(reference / "miniature/tables", tmp_path / "results/tables")
    shown = own(plan, "ablations", tmp_path / "results", ["mine.yaml"])
    (scale,) = shown["scales"]
    names = [variant["name"] for variant in scale["tasks"][0]["variants"]]
    assert "wide" in names and "attention" not in names
    assert scale["command"] == "uv run snakemake --cores 2 --configfile mine.yaml --"
    assert scale["tasks"][0]["chosen"] == ["sparse", "binary"]
    assert suites_in(plan, tmp_path) == ["main", "ablations"]
    assert "results/tables/ablations/tradeoff.csv" in files(plan, "ablations")


# The page.


def test_a_page_is_whole_asks_for_nothing_and_repeats(reference):
    data = published(reference)
    text = page(data)
    assert text == page(published(reference))
    assert "{{" not in text.split("<script", 1)[0]
    assert text.count("</script>") == len(LIBRARIES) + 2
    assert 'src="http' not in text and "default-src 'none'" in text


@pytest.mark.workflow
def test_text_of_a_table_ends_no_script(reference):
    path = reference / "miniature/tables/tradeoff.csv"
    path.write_text(path.read_text().replace(",x,", ",</script><b>,"))
    assert "</script><b>" not in page(published(reference))


def test_all_code_of_the_page_is_in_it():
    assert {f"{name}.js" for name in SCRIPTS} == {path.name for path in WEB.glob("*.js")}
    for marker in MARKERS:
        assert f'"{marker}":' in (text := (WEB / "charts.js").read_text()) or f" {marker}:" in text


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_libraries_are_those_published_with_their_licences(library, tmp_path):
    assert "Permission to use" in code(library)[:600]
    for name in (library.file, library.licence):
        shutil.copy(FOLDER / name, tmp_path)
    with (tmp_path / library.file).open("a") as file:
        file.write(" ")
    with pytest.raises(DataError, match="is not .* as it was published"):
        code(library, tmp_path)


@pytest.mark.workflow
def test_it_is_made_without_torch():
    command = (
        "import sys, d2dmoe.plan.explored, d2dmoe.explorer.page; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
