"""Every call of snakemake that the documentation prints, as it is printed, in a project that was
copied to a folder whose name needs quotes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from d2dmoe.io.files import copy_into
from d2dmoe.plan import publishing
from d2dmoe.plan.checks import rule_names
from workflow.conftest import ROOT, SUITES
from workflow.planning import call_snakemake

pytestmark = pytest.mark.workflow

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *ROOT.glob("docs/**/*.md")]
CALL = re.compile(r"(?:uv run (?:--[\w-]+ (?:[\w-]+ )?)?)?snakemake [^`#\n&|]+")
ELSEWHERE = ("--profile", "--snakefile")  # a cluster, several GPUs, a container
# Hours of a real configuration, minutes of this; and what test_published.py runs.
LONG = ("seeds=", "tuning", "validation", "figures")
CONFIG = re.compile(r"[\w./-]+\.yaml")


def printed() -> list[str]:
    """The calls; of those that name the same targets the first."""
    found = [call.strip() for page in PAGES for call in CALL.findall(page.read_text())]
    found = [call for call in found if not any(x in call for x in ELSEWHERE)]
    targets = [re.sub(r".*snakemake|--cores \d+", "", call).split() for call in found]
    first = {" ".join(own): call for own, call in [*zip(targets, found, strict=True)][::-1]}
    return [call for call in dict.fromkeys(found) if call in first.values()]


def test_no_rule_has_a_name_that_a_task_may_take():
    command = [sys.executable, "-m", "snakemake", "--list-rules"]
    config = ["--configfile", "tests/workflow/tiny.yaml"]
    listed = subprocess.run([*command, *config], cwd=ROOT, capture_output=True, text=True)
    names = set(listed.stdout.split()) - {"tiny"}
    assert len(names) > 50, listed.stderr
    assert names <= rule_names()


@pytest.fixture(scope="module")
def moved(copied) -> Path:
    """The copied project with an environment of its own; every configuration that a printed call
    may name is the tiny one."""
    folder, plan = copied.folder, copied.plan
    for name in {"config.yaml", *(n for call in printed() for n in CONFIG.findall(call))}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(copied.config, sort_keys=False))
    (folder / "environment").symlink_to(sys.prefix)
    files, reference = publishing.files(plan), folder / "results/reference/tiny"
    made = {folder / source: place for source, place in files.items()}
    copy_into(reference, {str(source): place for source, place in made.items() if source.exists()})
    (reference / "config.yaml").write_text(publishing.config_text(plan))
    return folder


def arguments_of(command: str) -> list[str]:
    """What a printed call gives to snakemake."""
    words = shlex.split(command)
    return words[words.index("snakemake") + 1 :]


def call(folder: Path, command: str) -> subprocess.CompletedProcess:
    """Run a printed call in a folder with its own environment."""
    return subprocess.run(
        [str(folder / "environment/bin/python"), "-m", "snakemake", *arguments_of(command)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src"), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def test_a_copied_project_has_nothing_to_do(moved):
    done = call(moved, f"snakemake {' '.join(SUITES)} --configfile small.yaml")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("command", printed())
def test_a_printed_call_works_as_it_is_printed(copied, moved, command):
    command = re.sub(r"\b(vision|TASK)\b", "tiny", command)  # the task of this configuration
    if any(word in command.replace("figures/", "") for word in LONG):
        command += " -n"
    done = call_snakemake(moved, arguments_of(command), copied.environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Traceback" not in done.stdout


def test_a_figures_name_is_a_target(moved):
    """One of all tasks, and one of a suite."""
    shutil.rmtree(moved / "results/figures")
    done = call(moved, "snakemake figure_4 figure_9d")
    assert done.returncode == 0, done.stdout[-3000:]
    drawn = {path.stem for path in (moved / "results/figures").rglob("[!.]*.p*")}
    assert drawn == {"figure_4", "figure_9d"}


def test_jobs_compute_in_the_moved_project(copied, moved):
    """They time a layer, draw it and decide its claim. The path of their interpreter needs quotes,
    and --cores asks for more than there is."""
    shutil.rmtree(moved / "results/benchmarks", ignore_errors=True)
    shutil.rmtree(moved / "results/figures/benchmarks", ignore_errors=True)
    done = call(moved, "snakemake --cores 64 figure_5 benchmarks")
    assert done.returncode == 0, done.stdout[-3000:]
    assert copied.figures("benchmarks") == {"cpu"}
    times = pd.read_csv(moved / "results/benchmarks/cpu.csv")
    assert (times["median_ms"] > 0).all() and set(times["fraction"]) >= {1.0}
    (claim,) = pd.read_csv(moved / "results/benchmarks/claims.csv")["claim"]
    assert claim == "C9"
    assert (moved / ".snakemake/environment").readlink() == moved / "environment"
