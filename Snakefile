# The paper's experiments as cached, file-tracked steps; one file of rules per stage.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")

# The code lies here; all else, results first, in the folder in which Snakemake runs, which may be another
# (--directory, or a workflow that has this one as a module).
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))

if "tasks" not in config:  # no --configfile: the miniature reproduction

    configfile: ROOT / "config.yaml"


include: "rules/common.smk"
include: "rules/dataset.smk"
include: "rules/stages.smk"
include: "rules/evaluate.smk"
include: "rules/downstream.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"
include: "rules/benchmarks.smk"
include: "rules/explorer.smk"


onstart:
    end_gracefully(workflow.scheduler)
    if workflow.local_exec:
        start_forkserver(Path.cwd())


report: "report/workflow.rst"


rule all:
    default_target: True
    input:
        tables.all_results(PLAN),
    localrule: True


rule validation:
    input:
        "results/tables/validation.csv",
    localrule: True


if any(task.tuning for task in PLAN.config.tasks.values()):

    rule tuning:
        input:
            "results/tables/tuning.csv",
        localrule: True


if benchmarks.configured(PLAN):

    rule benchmarks:
        input:
            benchmarks.results(PLAN),
        localrule: True


for suite in SUITES[1:]:  # snakemake --cores 2 ablations
    if PLAN.tasks_of(suite):

        rule:
            name:
                suite
            input:
                tables.suite_results(PLAN, suite),
            localrule: True


for task in PLAN.config.tasks:  # one target per task: snakemake --cores 2 vision

    rule:
        name:
            task
        input:
            tables.task_results(PLAN, SUITES[0], task),
        localrule: True
