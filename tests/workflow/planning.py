"""Calls of snakemake, and which jobs one would run, asked of Snakemake itself.

Snakemake keeps state in its modules, and a Snakefile imports the workspace's own code. So each
call is a fresh process, which a server forks that has Snakemake imported already: two of the four
seconds that a call takes.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.reduction import DupFd
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryFile
from typing import NamedTuple

import yaml
from snakemake_interface_executor_plugins.utils import encode_target_jobs_cli_args

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "snakemake.cli", "pandas"])
TIMEOUT_S = 800  # below that of a test


class Job(NamedTuple):
    """A job of the workflow."""

    rule: str  # a drawing's is called by its figure
    outputs: tuple[str, ...]
    wildcards: dict[str, str]
    target: str  # as a cluster's node is told it


def call_snakemake(
    folder: Path, arguments: list[str], environment: Mapping[str, str]
) -> CompletedProcess:
    """What `snakemake ARGUMENTS` does and says in a folder; standard output and error come together
    in `stdout`. Of the variables that Python reads when it starts, PYTHONPATH alone has an effect.

    Raises:
        TimeoutExpired: it takes longer than a test may; it is killed.
    """
    with TemporaryFile("w+", encoding="utf-8") as said:
        how = (folder, arguments, dict(environment), DupFd(said.fileno()))
        process = PROCESSES.Process(target=_called, args=how)
        process.start()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            raise TimeoutExpired(arguments, TIMEOUT_S)
        said.seek(0)
        return CompletedProcess(arguments, process.exitcode, said.read())


def _called(folder: Path, arguments: list[str], environment: dict[str, str], said: DupFd) -> None:
    from snakemake.cli import main

    os.dup2(said.detach(), 1)
    os.dup2(1, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = ["snakemake", *arguments]
    main(arguments)


def planned_jobs(
    folder: Path, config: Path, targets: Iterable[str], modules: Iterable[Path]
) -> list[Job]:
    """The jobs that `snakemake TARGETS` would run in a folder; rules that only name targets are
    left out.

    Args:
        folder: holds the Snakefile, the profile and the results.
        config: the configuration file.
        targets: rules or files.
        modules: folders in which Python finds the workspace's code.
    """
    with ProcessPoolExecutor(1, PROCESSES) as process:
        return process.submit(_planned, folder, config, set(targets), list(modules)).result()


def _planned(folder: Path, config: Path, targets: set[str], modules: list[Path]) -> list[Job]:
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness, RerunTrigger
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        ResourceSettings,
    )

    sys.path[:0] = map(str, modules)
    profile = yaml.safe_load((folder / "profiles/default/profile.yaml").read_text())
    triggers = RerunTrigger.parse_choices_set(profile["rerun-triggers"])
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            ResourceSettings(cores=2),
            ConfigSettings(configfiles=[config]),
            snakefile=folder / "Snakefile",
            workdir=folder,
        )
        dag = workflow.dag(DAGSettings(targets=targets, rerun_triggers=triggers))
        dag.execute_workflow(executor="dryrun")
        jobs = workflow._workflow.dag.needrun_jobs(exclude_finished=False)
        return [_described(job) for job in jobs if job.output]


def _described(job) -> Job:
    (target,) = encode_target_jobs_cli_args(job.get_target_spec())
    rule = job.rule.name.removeprefix("draw_")
    return Job(rule, tuple(map(str, job.output)), dict(job.wildcards_dict), target)
