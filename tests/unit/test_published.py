"""Laws of what is published: figures are drawn of it alone, as the workflow drew them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pandas import DataFrame
from small_config import with_everything

from d2dmoe.config.experiment import parse_config
from d2dmoe.errors import ConfigError, DataError
from d2dmoe.plan import publishing
from d2dmoe.plan.plan import Plan, load_plan
from d2dmoe.plan.published import SHOWN, drawings
from d2dmoe.tables import COLUMNS, LAYER

ROOT = Path(__file__).parents[2]


OTHERS = (
    *(f"tables/{suite}/" for suite in ("ablations", "compatibility", "neighbours")),
    "tables/tuning.csv",
)


@pytest.fixture
def plan(raw, root) -> Plan:
    raw = with_everything(raw)
    raw["tasks"]["tiny"]["title"] = "ViT on noise"
    return load_plan(raw, root)


@pytest.fixture
def reference(plan, tmp_path) -> Path:
    """A published miniature, whose tables have no rows."""
    folder = tmp_path / "reference" / "miniature"
    for place in publishing.files(plan).values():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(COLUMNS.get(path.stem, ["any"])) + "\n")
    (folder / "config.yaml").write_text(publishing.config_text(plan))
    return tmp_path / "reference"


@pytest.mark.workflow
def test_drawing_imports_no_torch():
    code = (
        "import sys\n"
        "import d2dmoe.plan.published, d2dmoe.figures.drawing, d2dmoe.jobs.job\n"
        "from d2dmoe.figures import FIGURES, WALL_CLOCK\n"
        "from d2dmoe.lookup import resolve\n"
        "for figure in (*FIGURES.values(), WALL_CLOCK):\n"
        "    resolve(figure.draw), resolve(figure.request)\n"
        "heavy = ('torch', 'transformers', 'triton', 'd2dmoe.moe')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_the_published_configuration_asks_for_the_same_figures(plan):
    back = Plan(parse_config(yaml.safe_load(publishing.config_text(plan))), plan.root)
    asked = [list(publishing.requests(x)) for x in (plan, back)]
    assert asked[0] == asked[1] and len(asked[0]) > 10


def test_every_table_and_all_that_figures_read_is_published_under_a_name_of_its_own(plan):
    files = publishing.files(plan)
    assert len({*files.values()}) == len(files)
    for _figure, _suite, task, request in publishing.requests(plan):
        for name, path in request.inputs.items():
            assert publishing.place(path, name, task) in files.values()
    tables = {source: place for source, place in files.items() if source.endswith(".csv")}
    assert all(source == f"results/{place}" for source, place in tables.items())
    assert {"tables/tiny/load_maps.safetensors", "tables/tiny/dataset.json"} <= {*files.values()}


def test_a_suite_that_no_task_has_is_not_published(raw, root):
    places = publishing.files(load_plan(raw, root)).values()
    assert "tables/claims.csv" in places
    assert not any(place.startswith("tables/ablations/") for place in places)


def test_activity_is_published_of_the_suites_whose_figures_show_it(plan):
    shown = {x.suite for x in publishing.requests(plan) if "activity" in x.request.inputs}
    places = [x for x in publishing.files(plan).values() if x.endswith("activity.csv")]
    assert shown == {"main"} and places == ["tables/activity.csv"]


def test_of_suites_that_were_not_begun_nothing_is_published(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    every = [*publishing.files(plan).values()]
    main = [x for x in every if not x.startswith(OTHERS)]
    assert [*publishing.begun(plan).values()] == main and main  # if nothing was begun
    _begin("tiny/tuning.csv", "tuning.csv", "ablations/tiny/tradeoff.csv")
    own = [x for x in every if x.startswith(("tables/ablations/", "tables/tuning"))]
    assert [*publishing.begun(plan).values()] == own and "tables/tuning.csv" in own
    _begin("claims.csv")
    assert [*publishing.begun(plan).values()] == [x for x in every if not x.startswith(OTHERS[1:3])]


def _begin(*tables):
    for table in tables:
        path = Path("results/tables", table)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_figures_of_a_suite_alone_are_drawn_where_the_main_one_is_not_published(reference):
    tables = reference / "miniature" / "tables"
    for path in tables.iterdir():
        if path.name != "ablations":
            path.unlink() if path.is_file() else shutil.rmtree(path)
    names = [drawing.name for drawing in drawings(reference)]
    assert names and all(name.startswith("miniature/ablations/") for name in names)


def test_every_figure_is_drawn_of_the_published_files_with_the_workflows_arguments(plan, reference):
    found = drawings(reference)
    asked = list(publishing.requests(plan))
    assert [x.arguments for x in found] == [x.request.arguments for x in asked]
    assert [x.draw for x in found] == [x.figure.draw for x in asked]
    folder = reference / "miniature"
    for drawing, (_figure, _suite, task, request) in zip(found, asked, strict=True):
        places = {x: publishing.place(path, x, task) for x, path in request.inputs.items()}
        assert drawing.inputs == {x: folder / place for x, place in places.items()}
    names = [x.name for x in found]
    assert len({*names}) == len(names)
    assert {"miniature/figure_4", "miniature/tiny/figure_4"} <= {*names}
    assert "miniature/compatibility/tiny/figure_6" in names
    (panel,) = next(x for x in found if x.name.endswith("tiny/figure_4")).arguments["panels"]
    assert panel["title"] == "ViT on noise" and panel["looks"]["sparse"] == 0


def test_a_tasks_figure_shows_its_rows_alone(reference, tmp_path):
    table = reference / "miniature/tables/layers.csv"
    header = table.read_text().strip()
    rows = [f"{task}{',1' * header.count(',')}" for task in ("tiny", "other", "tiny")]
    table.write_text("\n".join([header, *rows]) + "\n")
    drawing = next(x for x in drawings(reference) if "layers" in x.inputs and x.task)
    own = drawing.files(tmp_path)["layers"]
    assert own.read_text().splitlines() == [header, rows[0], rows[2]]
    assert drawing.files(tmp_path)["layers"] == own


def layer_rows(*tokens: int) -> str:
    """Timed layers."""
    columns = [*LAYER, *(name for name in COLUMNS["table"] if name not in LAYER)]
    texts = ("activation", "device", "dtype", "mask", "backend")
    rows = [{name: "x" if name in texts else 1 for name in columns} | {"tokens": n} for n in tokens]
    return DataFrame(rows).to_csv(index=False)


@pytest.mark.parametrize(
    ("tokens", "names"), [((9, 9), ["layer"]), ((9, 99), ["layer", "layer_appendix"])]
)
def test_benchmarks_are_drawn_where_their_tables_are_published(tmp_path, tokens, names):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu/layer.csv").write_text(layer_rows(*tokens))
    assert [x.name for x in drawings(tmp_path)] == [f"gpu/{name}" for name in names]


def test_one_message_names_all_that_is_missing(reference):
    folder = reference / "miniature/tables"
    (folder / "layers.csv").unlink()
    (folder / "tradeoff.csv").write_text("task,model,variant\n")
    with pytest.raises(DataError) as caught:
        drawings(reference)
    message = str(caught.value)
    assert f"{folder}/layers.csv is missing" in message
    assert f"{folder}/tradeoff.csv has no column dataset, method, seed" in message
    assert message.count("tradeoff.csv") == 1 and "snakemake publish" in message


def test_a_message_has_an_end(reference):
    for table in (reference / "miniature").rglob("*.csv"):
        if table.stem != "claims":  # which is no figure's, and says which suites are published
            table.unlink()
    with pytest.raises(DataError, match=r"\n  and \d+ more\n.*snakemake publish") as caught:
        drawings(reference)
    assert str(caught.value).count(" is missing") == SHOWN


def test_a_suite_without_a_folder_is_not_drawn(reference):
    before = {x.name for x in drawings(reference)}
    shutil.rmtree(reference / "miniature/tables/compatibility")
    left = {x.name for x in drawings(reference)}
    assert left == {name for name in before if "/compatibility/" not in name} < before


def test_tables_without_their_configuration_are_refused(reference):
    config = reference / "miniature/config.yaml"
    for text in ("{", "- a", "tasks: {x: {}}"):
        config.write_text(text)
        with pytest.raises(ConfigError, match=r"(?s)config\.yaml is no configuration of .*publish"):
            drawings(reference)
    config.unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml, .*is missing\. .*publish"):
        drawings(reference)


def test_where_nothing_is_published_nothing_is_drawn(tmp_path):
    with pytest.raises(DataError, match="holds no published results"):
        drawings(tmp_path)
