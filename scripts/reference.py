from pathlib import Path

from d2dmoe.config.data import data_config
from d2dmoe.io.csvfile import write_csv
from d2dmoe.jobs.job import job
from d2dmoe.stages.reference import COLUMNS, reference

with job(snakemake):
    rows = reference(
        data_config(snakemake.params.cfg),
        snakemake.wildcards.task,
        Path.cwd(),
        Path(snakemake.input.about),
        snakemake.params.entries,
    )
    write_csv(Path(snakemake.output[0]), rows, COLUMNS)
