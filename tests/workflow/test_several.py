"""Jobs of several processes in the workflow, as torchrun starts them, on the CPU."""

import csv
import subprocess
import sys

import pytest

from workflow.conftest import ROOT, Workspace

pytestmark = pytest.mark.workflow


def small(folder, gpu: int) -> Workspace:
    """A workspace whose dense model trains for three epochs."""
    workspace = Workspace(folder)
    workspace.config["tasks"]["tiny"]["dense"]["epochs"] = 3
    workspace.config["resources"] = {"gpu": gpu}
    return workspace


def numbers(path) -> list[dict[str, float | str]]:
    with path.open() as file:
        return [{key: number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def check_close(history: list[dict], other: list[dict]) -> None:
    """As near as Adam leaves trainings whose first steps are equal but for rounding."""
    assert len(history) == len(other)
    for row, its in zip(history, other, strict=True):
        assert row["loss"] == pytest.approx(its["loss"], rel=1e-3)
        assert row == pytest.approx(its, rel=1e-2, abs=0.02)


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def test_two_processes_make_what_one_does_and_nothing_is_made_again(tmp_path):
    found = {}
    for gpu in (1, 2):
        workspace = small(tmp_path / str(gpu), gpu)
        model = workspace.model("dense").relative_to(workspace.folder)
        outcome = workspace.plan.line("main", "tiny", "dense").evaluation("test")
        workspace.make(outcome)
        found[gpu] = [
            numbers(workspace.folder / x) for x in (model.parent / "history.csv", outcome)
        ]
    (history, points), (its_history, its_points) = found.values()
    check_close(its_history, history)
    for key in ("accuracy", "loss"):
        assert its_points[0][key] == pytest.approx(points[0][key], rel=1e-2, abs=0.02)
    assert not workspace.find(".state/*")
    workspace.config["resources"] = {"gpu": 1, "shard": True}
    assert workspace.jobs(outcome) == []


def test_an_error_of_a_job_of_several_processes_is_one_message(tmp_path):
    workspace = small(tmp_path / "project", gpu=2)
    workspace.config["tasks"]["tiny"]["dense"]["lr"] = 1e9
    workspace.config["tasks"]["tiny"]["dense"]["clip"] = None
    model = workspace.model("dense").relative_to(workspace.folder)
    result = workspace.run(str(model))
    assert result.returncode == 1
    assert "Lower the learning rate" in result.stdout and "Traceback" not in result.stdout


def test_nothing_is_lost_when_processes_of_torchrun_are_killed():
    command = [sys.executable, ROOT / "tools/kill_processes.py", "--kills", "2", "--shard"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("2 kills, 40 steps")
