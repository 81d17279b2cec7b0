from pathlib import Path

from d2dmoe.csvfile import write_csv
from d2dmoe.job import job
from d2dmoe.tables import TRADEOFF_COLUMNS, tradeoff

with job(snakemake):
    write_csv(Path(snakemake.output[0]), tradeoff(snakemake.params.entries), TRADEOFF_COLUMNS)
