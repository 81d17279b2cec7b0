from pathlib import Path

from d2dmoe.io.csvfile import write_csv
from d2dmoe.jobs.job import job
from d2dmoe.tables import TRADEOFF_COLUMNS, tradeoff

with job(snakemake):
    rows = tradeoff(snakemake.params.entries, snakemake.params.metrics)
    write_csv(Path(snakemake.output[0]), rows, TRADEOFF_COLUMNS)
