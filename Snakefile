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
include: "rules/sparsify.smk"
include: "rules/split.smk"
include: "rules/routers.smk"
include: "rules/evaluate.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"


report: "report/workflow.rst"


localrules:  # seconds each: on a cluster they run where snakemake runs
    all,
    tradeoff,
    validation,
    layers,
    active_neurons,
    patch_load,
    summary,
    claims,
    figure_2a,
    figure_2b,
    figure_2c,
    figure_4,
    figure_8a,
    figure_8b,
    figure_9d,
    figure_10,


rule all:
    default_target: True
    input:
        tables(),
        figures(),
