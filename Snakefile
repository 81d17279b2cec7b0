# The paper's experiments as cached, file-tracked steps; one file of rules per stage.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.6")

if "tasks" not in config:  # no --configfile: the miniature reproduction

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/dataset.smk"
include: "rules/dense.smk"
include: "rules/projections.smk"
include: "rules/sparsify.smk"
include: "rules/split.smk"
include: "rules/routers.smk"
include: "rules/evaluate.smk"
include: "rules/baselines.smk"
include: "rules/compression.smk"
include: "rules/downstream.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"
include: "rules/benchmarks.smk"


report: "report/workflow.rst"


localrules:  # seconds each: on a cluster they run where snakemake runs
    all,
    validation,
    tradeoff,
    validation_tradeoff,
    layers,
    active_neurons,
    patch_load,
    summary,
    all_tasks,
    claims,
    fairness,
    tuning_table,
    figure_2a,
    figure_2b,
    figure_2c,
    figure_3,
    figure_4,
    figure_4_all_tasks,
    benchmark_table,
    benchmark_claims,
    figure_5,
    figure_11,
    figure_wall_clock,
    figure_6,
    figure_7,
    figure_8a,
    figure_8b,
    figure_9a,
    figure_9b,
    figure_9c,
    figure_9d,
    figure_10,
    figure_12,
    figure_16,
    ablation_routers,
    ablation_splits,
    ablation_router_widths,


rule all:
    default_target: True
    input:
        all_results(),


rule validation:
    input:
        "results/tables/validation.csv",


if any(task.tuning for task in CONFIG.tasks.values()):

    rule tuning:
        input:
            "results/tables/tuning.csv",


if any(BENCHMARKS.values()):

    rule benchmarks:
        input:
            benchmark_results(),


for suite in SUITES[1:]:  # snakemake --cores 2 ablations
    if tasks_of(suite):

        rule:
            name:
                suite
            input:
                suite_results(suite),


for task in CONFIG.tasks:  # one target per task: snakemake --cores 2 vision

    rule:
        name:
            task
        input:
            task_results("main", task),
