from pathlib import Path

from d2dmoe.fairness import wall_times
from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.job import job

with job(snakemake):
    write_rows(Path(snakemake.output[0]), wall_times(snakemake.params.entries))
