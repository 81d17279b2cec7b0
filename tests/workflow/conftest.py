"""A copy of the project in which the tests run the workflow on a tiny configuration."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PARTS = ["Snakefile", "rules", "scripts", "src", "profiles", "report", "config.yaml"]


class Workspace:
    """A folder with the project's code, its configuration and what the workflow made there."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        for part in PARTS:
            source = ROOT / part
            ignore = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=ignore)
            else:
                shutil.copy(source, folder / part)
        (folder / "resources").symlink_to(ROOT / "resources")
        self.config = yaml.safe_load((ROOT / "tests/workflow/tiny.yaml").read_text())

    def command(self, *arguments: str) -> list[str]:
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(self.config, allow_unicode=True))
        options = ["--cores", "2", "--configfile", "tiny.yaml"]  # last: it takes several files
        return [sys.executable, "-m", "snakemake", *arguments, *options]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.folder / "src")}

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Call snakemake; standard output and error come together in `stdout`."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )

    def planned(self) -> set[str]:
        """Names of the rules that a call would run."""
        result = self.run("all", "--dry-run")
        assert result.returncode == 0, result.stdout
        table = re.search(r"^job +count\n-[- ]+\n(.*?)\n\n", result.stdout, re.M | re.S)
        rules = {line.split()[0] for line in table[1].splitlines()} if table else set()
        return rules - {"all", "total"}

    def find(self, pattern: str) -> list[Path]:
        return sorted((self.folder / "results").glob(pattern))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workspace:
    """A workspace in which `all` has run once; tests leave its results and code as they were."""
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "project")
    result = workspace.run("all")
    assert result.returncode == 0, result.stdout[-5000:]
    return workspace


@pytest.fixture
def configured(finished):
    """The finished workspace, whose configuration a test may change."""
    before = yaml.safe_load(yaml.safe_dump(finished.config))
    yield finished
    finished.config = before
