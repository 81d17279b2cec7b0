from pathlib import Path

from d2dmoe.explorer.page import write_page
from d2dmoe.jobs.job import job
from d2dmoe.plan.explored import published

with job(snakemake):
    write_page(Path(snakemake.output[0]), published(Path(snakemake.params.reference)))
