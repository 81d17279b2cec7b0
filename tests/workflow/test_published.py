"""What is published is enough to draw every figure again, without torch and to the same bytes."""

import shutil

import pytest

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def redrawn(finished, tmp_path_factory):
    """The finished workspace with its results published and drawn again, where torch is not to be
    imported; afterwards as it was."""
    without_torch = tmp_path_factory.mktemp("broken") / "site-packages"  # as if installed
    (without_torch / "torch").mkdir(parents=True)
    (without_torch / "torch/__init__.py").write_text("raise ImportError('no torch here')\n")
    results = finished.folder / "results"
    finished.make("publish")
    (results / "reference").mkdir()
    (results / "published").rename(results / "reference/tiny")
    finished.modules.insert(0, without_torch)
    finished.make("figures")
    yield finished
    finished.modules.remove(without_torch)
    for folder in ("reference", "figures/reference"):
        shutil.rmtree(results / folder, ignore_errors=True)  # a failed job leaves none


def test_published_figures_are_the_workflows_own(redrawn):
    figures = redrawn.folder / "results/figures"
    own = {file.relative_to(figures) for file in redrawn.find("figures/**/[!.]*.p*")}
    own = {path for path in own if path.parts[0] not in ("reference", "benchmarks")}
    drawn = figures / "reference/tiny"
    assert {p.relative_to(drawn) for p in drawn.rglob("*.p*")} == own and len(own) > 30
    for path in own:
        assert (drawn / path).read_bytes() == (figures / path).read_bytes(), path


def test_nothing_is_drawn_again_until_a_published_table_changes(redrawn):
    assert redrawn.planned("figures") == set()
    table = redrawn.folder / "results/reference/tiny/tables/tradeoff.csv"
    table.write_text(table.read_text() + "\n")
    assert redrawn.planned("figures") == {"figures"}


def test_a_reference_without_a_column_is_told_in_one_message(redrawn):
    table = redrawn.folder / "results/reference/tiny/tables/summary.csv"
    table.write_text(table.read_text().replace("flops_ratio_at_99,", "other,", 1))
    output = redrawn.run("figures").stdout
    assert output.count("summary.csv has no column flops_ratio_at_99") == 1
    assert "Traceback" not in output
