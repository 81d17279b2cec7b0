"""Laws of the clean-up: what a variant leads to is never touched, all else is found."""

from pathlib import Path

import pytest
from small_config import with_everything

from d2dmoe.io.unused import find_unused, remove, report
from d2dmoe.plan.plan import Plan, load_plan
from d2dmoe.plan.tables import job_log, job_record

MODEL = "results/models/tiny/seed-0"
KEPT = [f"{MODEL}/dense-e1-00000001", "results/data/tiny/images-00000002"]
GONE = [f"{MODEL}/dense-e2-00000003", "results/data/tiny/images-00000004"]
GONE += ["results/models/tiny/seed-7/dense-e1-00000001"]  # of another seed
GONE += ["results/models/other/seed-0/dense-e1-00000001", "results/data/other/images-00000002"]
OTHERS = ["tables/tiny/tradeoff.csv", "figures/figure_4.png", "models.csv", "benchmarks/cpu.csv"]
OTHERS += ["logs/tables/tiny/tradeoff.log", "benchmarks/cpu/small.csv", "reference/models/x/y/z"]


def fill(root: Path, folder: str) -> None:
    """A folder as jobs leave it, with its log and the record of its job."""
    for path in (
        f"{folder}/evaluate/test/dense.csv",
        job_log(folder, "x"),
        job_record(folder, "x"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(folder)


def places(folders: list[str]) -> set[str]:
    """The folders, and where their logs and records lie."""
    of_jobs = [Path(job(folder, "x")).parent for folder in folders for job in (job_log, job_record)]
    return {*folders, *map(str, of_jobs)}


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """The folder of results, relative to the working directory as the workflow has it."""
    monkeypatch.chdir(tmp_path)
    for folder in KEPT + GONE:
        fill(tmp_path, folder)
    for name in OTHERS:
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return Path("results")


def files(root: Path) -> dict[str, str]:
    return {str(p): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def test_folders_that_are_not_used_are_found_with_their_logs_and_records(results):
    found = find_unused(results, KEPT)
    assert set(map(str, found)) == places(GONE)
    assert found == sorted(found)


def test_the_place_of_the_results_does_not_matter(results, tmp_path):
    found = find_unused(tmp_path / "results", KEPT)
    assert {str(path.relative_to(tmp_path)) for path in found} == places(GONE)


def test_where_all_is_used_nothing_is_found(results):
    assert find_unused(results, KEPT + GONE) == []
    assert find_unused(results, [*KEPT, *GONE, "results/models/tiny/seed-0/not-yet-made"]) == []


def test_without_results_nothing_is_found(tmp_path):
    assert find_unused(tmp_path / "results", KEPT) == []


def test_files_that_lie_beside_the_folders_are_left_alone(results):
    (results / "models/tiny/seed-0/notes.txt").write_text("mine")
    (results / "data/tiny/README").write_text("mine")
    assert set(map(str, find_unused(results, KEPT))) == places(GONE)


def test_removing_leaves_all_that_is_used_as_it_was(results):
    before = files(results)
    remove(find_unused(results, KEPT))
    gone = places(GONE)
    kept = {p: text for p, text in before.items() if not any(p.startswith(f"{g}/") for g in gone)}
    assert files(results) == kept and len(kept) == len(OTHERS) + 3 * len(KEPT)
    assert find_unused(results, KEPT) == []


def test_of_a_folder_on_another_disk_the_link_alone_is_removed(results, tmp_path):
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_text("weights")
    link = results / "models/tiny/seed-0/dense-e3-00000005"
    link.symlink_to(elsewhere)
    remove(find_unused(results, KEPT))
    assert not link.exists() and (elsewhere / "model.safetensors").exists()


def test_the_report_lists_the_folders_and_says_what_deletes_them():
    folders = [Path("results/data/a"), Path("results/data/b")]
    assert report(folders, removed=False).splitlines() == [
        "results/data/a",
        "results/data/b",
        "2 folders are unused; `snakemake remove_unused` deletes them",
    ]
    assert report(folders, removed=True).splitlines()[-1] == "removed 2 folders"
    for removed in (False, True):
        assert "every folder of results/ belongs to a variant" in report([], removed)


def used(plan: Plan) -> list[str]:
    """As the rules ask for it."""
    return [*plan.steps, *map(plan.data_folder, plan.config.tasks)]


def test_an_earlier_configurations_folders_are_unused_until_it_returns(raw, root, monkeypatch):
    monkeypatch.chdir(root)
    before = load_plan(with_everything(raw), root)
    for folder in used(before):
        fill(root, folder)
    assert find_unused(Path("results"), used(before)) == []
    changed = with_everything(raw)
    changed["tasks"]["tiny"]["router"]["width"] = 32
    found = set(map(str, find_unused(Path("results"), used(load_plan(changed, root)))))
    routed = {f for f, s in before.steps.items() if "router" in [x.stage.name for x in s.steps]}
    wide = {line.folder for line in before.lines("ablations", "tiny") if line.variant == "wide"}
    assert found == places(sorted(routed - wide)) and wide
