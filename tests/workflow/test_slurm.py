"""The workflow on a real SLURM: a cluster of one node, without accounting, set up for these tests.

By default a few jobs, in three minutes; `pytest -m slurm --whole-slurm` makes all suites of the
tiny configuration, through sbatch and here, in about 25 minutes.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workflow.conftest import ROOT, SUITES, Workspace
from workflow.test_several import check_close, numbers

pytestmark = [pytest.mark.workflow, pytest.mark.slurm, pytest.mark.timeout(3600)]

TOOL = ROOT / "tools/slurm_node.py"
PACKAGES = ["slurm-wlm", "munge"]  # Debian's
CALL = re.compile(r"uv run --extra slurm snakemake all (--profile \S+)")


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[None]:
    """A SLURM node that has two GPUs, by name only."""
    if os.getuid():
        pytest.skip("only root can start SLURM's daemons")
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("snakemake-executor-plugin-slurm is not installed: uv run --extra slurm pytest")
    install()
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        [sys.executable, TOOL, "start", folder, "--gpus", "2"], capture_output=True, text=True
    )
    try:
        if started.returncode:
            pytest.skip(f"SLURM does not start here: {started.stderr.strip()[-300:]}")
        yield
    finally:
        subprocess.run([sys.executable, TOOL, "stop", folder], check=True)


def install() -> None:
    """Debian's packages of SLURM, where they are missing and can be had."""
    if shutil.which("slurmctld") and shutil.which("munged"):
        return
    if not shutil.which("apt-get"):
        pytest.skip("SLURM is not installed, and there is no apt-get")
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            ["apt-get", *command], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"SLURM cannot be installed: {done.stderr.strip()[-300:]}")


class Submitted:
    """A call of snakemake that makes targets through sbatch."""

    def __init__(self, workspace: Workspace, *targets: str):
        self.workspace, self.out = workspace, workspace.folder / "slurm.out"
        options = CALL.search((ROOT / "docs/cluster.md").read_text())[1].split()
        options += ["--slurm-init-seconds-before-status-checks", "2"]  # short jobs
        config = ["--configfile", workspace.save_config().name]
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *targets, *options, *config],
                cwd=workspace.folder,
                env=workspace.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def log(self, model: Path) -> str:
        """What the job that makes a model has said."""
        folder = model.parent.relative_to(self.workspace.folder / "results")
        logs = (self.workspace.folder / "results/logs" / folder).glob("*.log")
        return "".join(path.read_text() for path in logs if "evaluate" not in path.name)

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 900) -> None:
        until = time.monotonic() + timeout_s
        while not happened():
            assert self.process.poll() is None and time.monotonic() < until, self.out.read_text()
            time.sleep(0.2)

    def job_of(self, model: Path) -> str:
        """The number of the SLURM job that makes a model, once it trains."""
        self.wait_for(lambda: bool(re.search(r" \d+/\d+ ", self.log(model))))
        return self.jobs_of(model)[-1]

    def jobs_of(self, model: Path) -> list[str]:
        """The numbers of all SLURM jobs that were submitted to make a model."""
        return re.findall(rf"{model.parent.name}/(\d+)\.log", self.out.read_text())

    def finish(self) -> None:
        assert self.process.wait(3000) == 0, self.out.read_text()[-5000:]


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """One in which the data are prepared once."""
    return Workspace(tmp_path_factory.mktemp("submitted") / "project")


def test_a_cancelled_training_goes_on_from_its_state(node, workspace):
    """It is submitted again by itself. Its job asks for what its training needs, and for a GPU."""
    workspace.config["runtime"]["log_every_s"] = 0.1
    workspace.config["tasks"]["tiny"]["dense"]["epochs"] = 40  # long enough to be cancelled
    model = workspace.model("dense")
    run = Submitted(workspace, str(model.relative_to(workspace.folder)))
    number = run.job_of(model)
    memory, limit, gpu = slurm("squeue", "-h", "-j", number, "-o", "%m %l %b").split()
    assert re.fullmatch(r"3\d{3}M", memory) and re.fullmatch(r"1\d:00", limit)
    assert gpu == "gres:gpu:1"
    slurm("scancel", number)
    run.wait_for(lambda: "stopped by SIGTERM" in run.log(model))
    run.finish()
    assert re.search(r"continues after step [1-9]", run.log(model))
    assert model.exists() and not workspace.find(".state/*")


def test_a_training_of_two_processes_goes_through_sbatch(node, workspace):
    """It asks for two GPUs, and leaves what one process does here."""
    workspace.config["resources"] = {"gpu": 2}
    workspace.config["tasks"]["tiny"]["dense"]["epochs"] = 3
    model = workspace.model("dense")
    run = Submitted(workspace, str(model.relative_to(workspace.folder)))
    run.finish()
    (number,) = run.jobs_of(model)
    assert slurm("squeue", "-h", "-t", "all", "-j", number, "-o", "%b").strip() == "gres:gpu:2"
    history = numbers(model.with_name("history.csv"))
    model.unlink()
    workspace.config["resources"] = {"gpu": 1}
    workspace.make(str(model.relative_to(workspace.folder)))
    check_close(history, numbers(model.with_name("history.csv")))


def test_all_suites_go_through_sbatch_and_equal_a_local_run(node, tmp_path, request):
    """Meanwhile one training is cancelled and another takes longer than it may."""
    if not request.config.getoption("--whole-slurm"):
        pytest.skip("takes 25 minutes: pytest -m slurm --whole-slurm")
    here, there = (Workspace(tmp_path / name) for name in ("here", "there"))
    for workspace in (here, there):  # trainings long enough to be stopped
        workspace.config["tasks"]["tiny"]["dense"]["epochs"] = 300
        workspace.config["tasks"]["tiny"]["bases"]["student"]["epochs"] = 100
    run = Submitted(there, *SUITES)
    dense, student = (
        there.folder / there.plan.line("compatibility", "tiny", name).last.model
        for name in ("dense", "student")
    )
    slurm("scontrol", "update", f"jobid={run.job_of(dense)}", "TimeLimit=1")
    run.wait_for(lambda: "stopped by SIGTERM" in run.log(dense))
    run.wait_for(dense.exists)
    slurm("scancel", run.job_of(student))
    run.wait_for(lambda: "stopped by SIGTERM" in run.log(student))
    run.finish()
    for model in (dense, student):
        assert re.search(r"continues after step [1-9]", run.log(model)), model
    here.make(*SUITES)
    assert contents(there) == contents(here)


def contents(workspace: Workspace) -> dict[str, bytes]:
    """All tables and models but for wall times."""
    files = [*workspace.find("tables/**/*.csv"), *workspace.find("models/**/*.safetensors")]
    return {
        str(path.relative_to(workspace.folder)): path.read_bytes()
        for path in files
        if path.name != "wall_times.csv"
    }
