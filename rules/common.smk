# What all rules share: the plan, the patterns of paths, and how wildcards ask the plan.
import re

from d2dmoe.extensions import import_extensions

import_extensions(config)  # first: they add records to the tables that the plan is made of

from d2dmoe.config.task import SUITES
from d2dmoe.figures import FIGURES, WALL_CLOCK
from d2dmoe.lookup import resolve
from d2dmoe.methods import EVALUATIONS
from d2dmoe.plan import benchmarks, claims, tables
from d2dmoe.plan.figures import folder_of
from d2dmoe.plan.folders import plain
from d2dmoe.plan.plan import SPLITS, lineage_of, load_plan, options_of
from d2dmoe.plan.tables import job_log, job_record
from d2dmoe.selection_rules import RULES
from d2dmoe.stages import STAGES

ROOT = Path(workflow.basedir)
PLAN = load_plan(config, ROOT)  # ends the run with one message if anything is wrong

DATA = "results/data/{task}/{dataset}"
FOLDER = "results/models/{task}/seed-{seed}/{folder}"  # of a stage, for one variant or several

# Each suite's tables, which figures, claims and the report read, lie in a folder of their own, but for
# the main one's. The wildcard `suite` is that folder with its slash, or empty.
TABLES = "results/tables/{suite}"
FIGURE_FOLDER = "results/figures/{suite}"


wildcard_constraints:
    suite="|".join(map(folder_of, SUITES)),
    task="|".join(map(re.escape, PLAN.config.tasks)),
    seed=r"\d+",
    dataset=r"[\w.-]+",
    folder=r"[\w.-]+",
    split="validation|test",
    knob=r"\w+",


def suite_of(wildcards):
    """The suite that a path belongs to."""
    return next(suite for suite in SUITES if folder_of(suite) == wildcards.suite)


def step_of(wildcards):
    """The stage whose folder a path names."""
    return PLAN.step(FOLDER.format(**wildcards))


def task_of(wildcards):
    """The options of the task that a path names."""
    return PLAN.task(wildcards.task)


def options(wildcards):
    """A stage's own options."""
    return options_of(step_of(wildcards))


def data_of(wildcards):
    """The dataset that a stage's model is of."""
    return PLAN.data_files(step_of(wildcards).data)


def split_of(wildcards):
    """The one split of it that a path names."""
    return PLAN.data_files(step_of(wildcards).data, [wildcards.split])


def model_code(script):
    """Digest of a script that reads a stage's model."""
    return lambda w: PLAN.model_code(script, step_of(w), w.get("knob"))
