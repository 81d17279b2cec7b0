from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.job import job
from d2dmoe.tables import gather

with job(snakemake):
    write_rows(Path(snakemake.output[0]), gather(snakemake.params.entries))
