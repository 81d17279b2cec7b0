from pathlib import Path

from d2dmoe.csvfile import write_rows
from d2dmoe.job import job
from d2dmoe.tables import gather

with job(snakemake):
    write_rows(Path(snakemake.output[0]), gather(snakemake.params.entries))
