"""Copies of the project in which the tests run the workflow on small configurations."""

import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from workflow import language

ROOT = Path(__file__).parents[2]
SUITES = ("all", "ablations", "compatibility")  # targets that together make every variant
PARTS = ["Snakefile", "rules", "scripts", "src", "profiles", "report", "config.yaml"]


class Workspace:
    """A folder with the project's code, a configuration and what the workflow made there."""

    def __init__(self, folder: Path, config: dict | None = None):
        self.folder = folder
        self.config = config or yaml.safe_load((ROOT / "tests/workflow/tiny.yaml").read_text())
        folder.mkdir()
        for part in PARTS:
            source = ROOT / part
            ignore = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=ignore)
            else:
                shutil.copy(source, folder / part)
        (folder / "resources").symlink_to(ROOT / "resources")

    def command(self, *arguments: str) -> list[str]:
        text = yaml.safe_dump(self.config, allow_unicode=True, sort_keys=False)
        (self.folder / "small.yaml").write_text(text)
        options = ["--cores", "2", "--configfile", "small.yaml"]  # last: it takes several files
        return [sys.executable, "-m", "snakemake", *arguments, *options]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.folder / "src"), "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Call snakemake; standard output and error come together in `stdout`."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=800,  # below that of a test
        )

    def plan(self, *targets: str) -> dict[str, int]:
        """How many jobs of each rule a call would run; without targets, that of `all`."""
        targets = targets or ("all",)
        result = self.run(*targets, "--dry-run")
        assert result.returncode == 0, result.stdout
        table = re.search(r"^job +count\n-[- ]+\n(.*?)\n\n", result.stdout, re.M | re.S)
        rows = [line.split() for line in table[1].splitlines()] if table else []
        return {rule: int(count) for rule, count in rows if rule not in (*targets, "total")}

    def planned(self, *targets: str) -> set[str]:
        """Names of the rules that a call would run; without targets, that of `all`."""
        return set(self.plan(*targets))

    def outputs(self, target: str) -> set[str]:
        """All files that a target is made of, there or not."""
        result = self.run(target, "--summary")
        assert result.returncode == 0, result.stdout
        return set(re.findall(r"^results/[^\t]+", result.stdout, re.M))

    def tables(self, task: str = "") -> set[str]:
        """Names of a task's tables, or of those over all tasks."""
        return {path.name for path in self.find(f"tables/{task}/*.csv")}

    def figures(self, task: str = "") -> set[str]:
        """Names of a task's figures, or of those over all tasks, that are there as PNG and PDF."""
        begins = {".png": b"\x89PNG", ".pdf": b"%PDF"}
        files = self.find(f"figures/{task}/*.p*")
        assert all(file.read_bytes()[:4] == begins[file.suffix] for file in files)
        both = {end: {file.stem for file in files if file.suffix == end} for end in begins}
        assert both[".png"] == both[".pdf"]
        return both[".png"]

    def find(self, pattern: str) -> list[Path]:
        return sorted((self.folder / "results").glob(pattern))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workspace:
    """A workspace in which all suites have run once; tests leave its code and what they made as it
    was."""
    return _run(Workspace(tmp_path_factory.mktemp("finished") / "project"), *SUITES)


@pytest.fixture
def configured(finished):
    """The finished workspace, whose configuration a test may change."""
    yield from _restored(finished)


@pytest.fixture(scope="session")
def finished_language(tmp_path_factory):
    """As `finished`, for the language tasks of configs/paper.yaml."""
    workspace = Workspace(tmp_path_factory.mktemp("language") / "project", language.config())
    language.save_sources(workspace.folder, workspace.config)
    yield _run(workspace, "all", "compatibility")
    for checkpoint in workspace.find("models/**/*.safetensors"):  # hundreds of megabytes
        checkpoint.unlink()


@pytest.fixture
def configured_language(finished_language):
    """Its workspace, whose configuration a test may change."""
    yield from _restored(finished_language)


def _run(workspace: Workspace, *targets: str) -> Workspace:
    result = workspace.run(*targets)
    assert result.returncode == 0, result.stdout[-5000:]
    return workspace


def _restored(workspace: Workspace):
    before = deepcopy(workspace.config)
    yield workspace
    workspace.config = before
