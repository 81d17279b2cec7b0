"""Copies of the project in which the tests run the workflow on small configurations."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from d2dmoe.plan.plan import Plan, load_plan
from workflow import language
from workflow.planning import Job, call_snakemake, planned_jobs

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/unit"))  # what tests of both kinds share
# Targets that together make every variant.
SUITES = ("all", "ablations", "compatibility", "neighbours")
PARTS = ["Snakefile", "rules", "scripts", "src", "profiles", "report", "config.yaml"]


class Workspace:
    """A folder with the project's code, a configuration and what the workflow made there."""

    def __init__(self, folder: Path, config: dict | None = None, extensions: Sequence[Path] = ()):
        """`extensions` are folders of modules beside the project's own. A folder that is there
        stays as it is."""
        self.folder = folder
        self.config = config or tiny()
        self.modules = [*extensions, folder / "src"]
        if not folder.exists():
            self._fill()

    def _fill(self) -> None:
        self.folder.mkdir()
        for part in PARTS:
            source = ROOT / part
            ignore = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, self.folder / part, ignore=ignore)
            else:
                shutil.copy(source, self.folder / part)
        (self.folder / "resources").symlink_to(ROOT / "resources")

    def save_config(self) -> Path:
        path = self.folder / "small.yaml"
        path.write_text(yaml.safe_dump(self.config, allow_unicode=True, sort_keys=False))
        return path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", *self.arguments(*arguments)]

    def arguments(self, *arguments: str) -> list[str]:
        """These and what every call gets; the last option takes several files."""
        return [*arguments, "--cores", "2", "--configfile", self.save_config().name]

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(map(str, self.modules))
        return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Call snakemake; standard output and error come together in `stdout`."""
        return call_snakemake(self.folder, self.arguments(*arguments), self.environment)

    def make(self, *targets: str) -> str:
        """Make targets; returns what snakemake said."""
        result = self.run(*targets)
        assert result.returncode == 0, result.stdout[-5000:]
        return result.stdout

    @property
    def plan(self) -> Plan:
        """The plan of the configuration."""
        return load_plan(self.config, self.folder)

    def jobs(self, *targets: str) -> list[Job]:
        """The jobs that a call would run; without targets, that of `all`."""
        return planned_jobs(self.folder, self.save_config(), targets or ("all",), self.modules)

    def counted(self, *targets: str) -> Counter[str]:
        """How many jobs of each rule that is."""
        return Counter(job.rule for job in self.jobs(*targets))

    def planned(self, *targets: str) -> set[str]:
        """The rules of these jobs."""
        return set(self.counted(*targets))

    @contextmanager
    def edited(self, module: str, change) -> Iterator[None]:
        """A module of the package is another for a while: `change` maps its text to the new."""
        path = self.folder / "src/d2dmoe" / module
        source = path.read_text()
        try:
            path.write_text(change(source))
            yield
        finally:
            path.write_text(source)

    def model(self, variant: str, task: str = "tiny") -> Path:
        """A variant's model."""
        return self.folder / self.plan.line("main", task, variant).last.model

    def tables(self, task: str = "") -> set[str]:
        """Names of a task's tables, or of those over all tasks."""
        return {path.name for path in self.find(f"tables/{task}/*.csv")}

    def figures(self, task: str = "") -> set[str]:
        """Names of a task's figures, or of those over all tasks, that are there as PNG and PDF."""
        begins = {".png": b"\x89PNG", ".pdf": b"%PDF"}
        files = self.find(f"figures/{task}/[!.]*.p*")  # not their checksums
        assert all(file.read_bytes()[:4] == begins[file.suffix] for file in files)
        both = {end: {file.stem for file in files if file.suffix == end} for end in begins}
        assert both[".png"] == both[".pdf"]
        return both[".png"]

    def find(self, pattern: str) -> list[Path]:
        return sorted((self.folder / "results").glob(pattern))


def tiny() -> dict:
    """The configuration of `tiny.yaml`."""
    return yaml.safe_load((ROOT / "tests/workflow/tiny.yaml").read_text())


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workspace:
    """A workspace in which all suites have run once; tests leave its code and what they made as it
    was. Its one compressed base is distilled, and it has fewer variants of the neighbours: unit
    tests take a pruned base and every option of a method through all stages."""
    workspace, _copy = _made_once(tmp_path_factory)
    return workspace


@pytest.fixture(scope="session")
def copied(tmp_path_factory) -> Workspace:
    """What `finished` was when it was made, in a folder whose name needs quotes, with new times.
    Its tests run beside those of `finished`."""
    _workspace, copy = _made_once(tmp_path_factory)
    return copy


def _made_once(tmp_path_factory) -> tuple[Workspace, Workspace]:
    """The finished workspace and its copy, which the first process that asks makes for all."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of this run's processes
    whole, copy = folder / "finished", folder / "l'été, a copy"
    config = _finished_config()
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not copy.exists():
            shutil.rmtree(whole, ignore_errors=True)  # of a process that failed
            Workspace(whole, config).make(*SUITES)
            shutil.copytree(whole, copy, symlinks=True, copy_function=shutil.copy)
    return Workspace(whole, config), Workspace(copy, deepcopy(config))


def _finished_config() -> dict:
    config = tiny()
    del config["runtime"]["save_every_s"]  # no job of it is killed
    task, suite = config["tasks"]["tiny"], config["tasks"]["tiny"]["compatibility"]
    del task["bases"]["pruned"], suite["variants"]["d2dmoe_pruned"], suite["figures"]["pruned"]
    for variant in ("cmoe_sparsified", "seer_global"):
        del task["neighbours"]["variants"][variant]
        task["neighbours"]["figures"]["neighbours"].remove(variant)
    return config


@pytest.fixture
def configured(finished):
    """The finished workspace, whose configuration a test may change."""
    yield from _restored(finished)


@pytest.fixture(scope="session")
def finished_language(tmp_path_factory):
    """As `finished`, for the language tasks of configs/paper.yaml."""
    workspace = Workspace(tmp_path_factory.mktemp("language") / "project", language.config())
    language.save_sources(workspace.folder, workspace.config)
    workspace.make("all")
    yield workspace
    for checkpoint in workspace.find("models/**/*.safetensors"):  # hundreds of megabytes
        checkpoint.unlink()


@pytest.fixture
def configured_language(finished_language):
    """Its workspace, whose configuration a test may change."""
    yield from _restored(finished_language)


def _restored(workspace: Workspace):
    before = deepcopy(workspace.config)
    yield workspace
    workspace.config = before
