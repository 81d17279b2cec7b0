from pathlib import Path

from d2dmoe.figures.cost_formula import draw
from d2dmoe.figures.style import save
from d2dmoe.jobs.job import job

with job(snakemake):
    figure = draw(**snakemake.params.cfg)
    save(figure, Path(snakemake.output.png), Path(snakemake.output.pdf))
