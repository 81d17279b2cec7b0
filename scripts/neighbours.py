from pathlib import Path

from d2dmoe import tables
from d2dmoe.io.csvfile import write_csv
from d2dmoe.io.read import read_table
from d2dmoe.jobs.job import job
from d2dmoe.neighbours import COLUMNS, neighbours

with job(snakemake):
    read = {k: read_table(Path(path), tables.COLUMNS[k]) for k, path in snakemake.input.items()}
    rows = neighbours(snakemake.params.entries, **read, dense=snakemake.params.dense)
    write_csv(Path(snakemake.output[0]), rows, COLUMNS)
