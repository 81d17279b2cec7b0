from pathlib import Path

import pandas as pd

from d2dmoe.claims.ledger import COLUMNS, wall_clock_ledger
from d2dmoe.io.csvfile import write_csv
from d2dmoe.jobs.job import job
from d2dmoe.page import write_page

with job(snakemake):
    tables = [pd.read_csv(path) for path in snakemake.input]
    write_csv(Path(snakemake.output[0]), wall_clock_ledger(tables), COLUMNS)
    write_page(Path(snakemake.output.page), Path(snakemake.output[0]))
