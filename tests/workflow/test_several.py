"""Jobs of several processes in the workflow, as torchrun starts them, on the CPU."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from workflow.conftest import ROOT, Workspace

pytestmark = pytest.mark.workflow


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


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """One in which the data are prepared once; its dense model trains for three epochs."""
    workspace = Workspace(tmp_path_factory.mktemp("several") / "project")
    workspace.config["tasks"]["tiny"]["dense"]["epochs"] = 3
    return workspace


def test_two_processes_make_what_one_does_and_nothing_is_made_again(workspace):
    dense = workspace.plan.line("main", "tiny", "dense")
    model, outcome = dense.last.model, dense.evaluation("test")
    files = [workspace.folder / path for path in (Path(model).with_name("history.csv"), outcome)]
    found = []
    for gpu in (1, 2):
        workspace.config["resources"] = {"gpu": gpu}
        for path in (model, outcome):  # the data stay
            (workspace.folder / path).unlink(missing_ok=True)
        workspace.make(outcome)
        found.append([numbers(path) for path in files])
    (history, points), (its_history, its_points) = found
    check_close(its_history, history)
    for key in ("accuracy", "loss"):
        assert its_points[0][key] == pytest.approx(points[0][key], rel=1e-2, abs=0.02)
    assert not workspace.find(".state/*")
    workspace.config["resources"] = {"gpu": 1, "shard": True}
    assert workspace.jobs(outcome) == []


def test_an_error_of_a_job_of_several_processes_is_one_message(workspace):
    workspace.config["resources"] = {"gpu": 2}
    workspace.config["tasks"]["tiny"]["dense"] |= {"lr": 1e9, "clip": None}
    result = workspace.run(workspace.plan.line("main", "tiny", "dense").last.model)
    assert result.returncode == 1
    assert "Lower the learning rate" in result.stdout and "Traceback" not in result.stdout


def test_nothing_is_lost_when_a_process_of_torchrun_is_killed():
    command = [sys.executable, ROOT / "tools/kill_processes.py", "--kills", "1", "--shard"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("1 kills, 20 steps")
