"""Kills the workflow again and again, and checks that nothing is lost.

    uv run python tools/soak.py --kills 100

A copy of the project runs once undisturbed, another is killed: the whole process group, Snakemake
alone, or one job; by SIGKILL or SIGTERM; at a random moment, in training or elsewhere. After each
kill the same command runs again, after `snakemake --unlock` where the lock was left behind. When a
run is complete although kills are left, its results are removed and it begins anew. Every table and
every model of a complete run must have the bytes of the undisturbed one.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
PARTS = ["Snakefile", "rules", "scripts", "src", "profiles", "report", "config.yaml", "resources"]
TARGETS = ["all", "ablations", "compatibility", "neighbours"]
TIMES = {"wall_times.csv"}  # differ from run to run
WAIT_S = (4.0, 16.0)  # before a kill
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def copy_project(folder: Path) -> None:
    """The code, without results."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / part)


def command(config: Path, cores: int, *arguments: str) -> list[str]:
    """A call of Snakemake."""
    call = [sys.executable, "-m", "snakemake", *arguments]
    return [*call, "--cores", str(cores), "--configfile", str(config)]


def start(folder: Path, call: list[str], log: Path) -> psutil.Popen:
    """Start the workflow as the leader of a process group of its own."""
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "HF_HUB_OFFLINE": "1"}
    with log.open("a") as file:
        return psutil.Popen(
            call, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def jobs_of(workflow: psutil.Popen) -> list[psutil.Process]:
    """The Python processes in which its jobs compute."""
    try:
        return [p for p in workflow.children(recursive=True) if not p.children()]
    except psutil.NoSuchProcess:
        return []


def kill(workflow: psutil.Popen, what: str, number: signal.Signals) -> None:
    """Send a signal; then wait until no process of the run is left, but after that of a job."""
    jobs = jobs_of(workflow)
    if what == "job":
        for job in jobs[:1]:
            job.send_signal(number)
        return
    if what == "group":
        os.killpg(workflow.pid, number)
    else:
        workflow.send_signal(number)
    psutil.wait_procs([workflow, *jobs], timeout=300)


def results(folder: Path) -> Iterator[Path]:
    """The files that must have the same bytes in every run."""
    for pattern in ("tables/**/*.csv", "models/**/*.safetensors", "models/**/*.csv"):
        for path in (folder / "results").glob(pattern):
            if path.name not in TIMES:
                yield path.relative_to(folder)


def differing(one: Path, other: Path) -> list[str]:
    """Results that only one folder has, or that are not the same in both."""
    names = {*results(one), *results(other)}
    return sorted(
        str(name)
        for name in names
        if not ((one / name).is_file() and (other / name).is_file())
        or (one / name).read_bytes() != (other / name).read_bytes()
    )


def main() -> None:
    """Report what was killed, and what was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of moments and kinds of kills")
    parser.add_argument("--config", type=Path, default=ROOT / "tests/workflow/tiny.yaml")
    parser.add_argument("--folder", type=Path, help="to work in; a temporary one if not given")
    parser.add_argument("--whole", type=Path, help="a finished project, to be compared with")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    config = options.config.resolve()
    print(f"in {folder}", flush=True)
    killed, whole = folder / "killed", options.whole or folder / "whole"
    call = command(config, options.cores, *TARGETS)
    if not options.whole:
        copy_project(whole)
        if start(whole, call, folder / "whole.log").wait():
            sys.exit(f"the undisturbed run failed: {folder / 'whole.log'}")
    copy_project(killed)
    counts, lost = soak(killed, call, whole, options, folder / "killed.log")
    for (what, name), number in sorted(counts.items()):
        print(f"{number:5} {what:9} {name}")
    print(f"{sum(counts.values())} kills, {len(lost)} runs lost", *lost, sep="\n")
    sys.exit(bool(lost))


def soak(killed: Path, call: list[str], whole: Path, options, log: Path) -> tuple[Counter, list]:
    """Kill until all kills are done and a run is complete; returns the kills and what was lost."""
    draw = random.Random(options.seed)
    counts: Counter[tuple[str, str]] = Counter()
    while True:
        workflow, before = start(killed, call, log), counts.total()
        while counts.total() < options.kills:
            gone, _alive = psutil.wait_procs([workflow], timeout=draw.uniform(*WAIT_S))
            if gone:
                break
            what, number = draw.choice(["workflow", "group", "job"]), draw.choice(SIGNALS)
            kill(workflow, what, number)
            counts[what, number.name] += 1
            print(f"{counts.total()}: {what} {number.name}", flush=True)
        if workflow.wait() == 0:
            lost = differing(whole, killed)
            if lost or counts.total() >= options.kills:
                return counts, lost
            shutil.rmtree(killed / "results")
        elif counts.total() == before:
            return counts, [f"a run that was not killed failed: {log}"]
        if any((killed / ".snakemake/locks").glob("*")):
            unlock = command(options.config.resolve(), options.cores, "--unlock")
            start(killed, unlock, log).wait()


if __name__ == "__main__":
    main()
