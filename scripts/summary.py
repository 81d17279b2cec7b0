from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.io.read import read_table
from d2dmoe.jobs.job import job
from d2dmoe.tables import TRADEOFF_COLUMNS, summary

with job(snakemake):
    table = read_table(Path(snakemake.input[0]), TRADEOFF_COLUMNS)
    write_rows(Path(snakemake.output[0]), summary(table))
