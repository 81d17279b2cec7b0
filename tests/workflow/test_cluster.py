"""What the workflow hands to a cluster, without one: targets that a node can read, and names that
file systems and SLURM can hold."""

import re

import pytest
import yaml
from snakemake.target_jobs import parse_target_jobs_cli_args

from d2dmoe.plan.plan import Plan
from workflow.conftest import ROOT, SUITES, Workspace
from workflow.planning import Job

pytestmark = pytest.mark.workflow

SHIPPED = ["config.yaml", "configs/paper.yaml", "tests/workflow/tiny.yaml"]
LONGEST_NAME = 255  # bytes of a file's name; SLURM's plugin puts all wildcards into one
PLAIN = re.compile(r"[\w.:=,/-]+")  # no shell changes it, however often it is quoted


@pytest.fixture(scope="module", params=SHIPPED)
def jobs(request, tmp_path_factory) -> list[Job]:
    """All jobs of all targets of a configuration."""
    config = yaml.safe_load((ROOT / request.param).read_text())
    workspace = Workspace(tmp_path_factory.mktemp("cluster") / "project", config)
    return workspace.jobs(*targets_of(workspace.plan))


def targets_of(plan: Plan) -> list[str]:
    """Everything that a configuration can be asked for."""
    suites = [suite for suite in SUITES[1:] if plan.tasks_of(suite)]
    tuned = any(task.tuning for task in plan.config.tasks.values())
    return ["all", "validation", *suites, *(["tuning"] if tuned else [])]


def test_a_node_reads_every_job_as_it_was_meant(jobs):
    """A job is passed on as RULE:WILDCARD=VALUE,…"""
    assert len(jobs) > 50
    for job in jobs:
        assert PLAIN.fullmatch(job.target), job
        (read,) = parse_target_jobs_cli_args([job.target])
        assert read.rulename.removeprefix("draw_") == job.rule, job
        assert read.wildcards_dict == job.wildcards, job


def test_every_job_has_a_target_of_its_own(jobs):
    assert len({job.target for job in jobs}) == len(jobs)


def test_names_of_logs_and_comments_are_short_enough(jobs):
    for job in jobs:
        together = "_".join(job.wildcards.values())
        assert len(together.encode()) <= LONGEST_NAME, job
        assert len(f"rule_{job.rule}_wildcards_{together}") <= LONGEST_NAME, job
