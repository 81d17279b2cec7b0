from pathlib import Path

from d2dmoe.fairness import tuning
from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.job import job

with job(snakemake):
    rows = tuning(snakemake.params.entries, snakemake.params.metric)
    write_rows(Path(snakemake.output[0]), rows)
