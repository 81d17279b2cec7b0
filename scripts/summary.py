from pathlib import Path

import pandas as pd

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.job import job
from d2dmoe.tables import summary

with job(snakemake):
    write_rows(Path(snakemake.output[0]), summary(pd.read_csv(snakemake.input[0])))
