from pathlib import Path

from d2dmoe.jobs.job import job
from d2dmoe.jobs.verify import report

with job(snakemake):
    print(report(Path("results")))
