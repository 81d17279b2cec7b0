from pathlib import Path

from d2dmoe.figures.projections import draw
from d2dmoe.figures.style import save
from d2dmoe.jobs.job import job

with job(snakemake):
    save(draw(), Path(snakemake.output.png), Path(snakemake.output.pdf))
