from pathlib import Path

from d2dmoe import tables
from d2dmoe.claims.ledger import COLUMNS, wall_clock_ledger
from d2dmoe.io.csvfile import write_csv
from d2dmoe.io.read import read_table
from d2dmoe.jobs.job import job
from d2dmoe.page import write_page

with job(snakemake):
    needed = [*tables.COLUMNS["table"], *tables.LAYER]
    timed = [read_table(Path(path), needed) for path in snakemake.input]
    write_csv(Path(snakemake.output[0]), wall_clock_ledger(timed), COLUMNS)
    write_page(Path(snakemake.output.page), Path(snakemake.output[0]))
