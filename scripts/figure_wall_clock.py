from pathlib import Path

from d2dmoe.figures.style import save
from d2dmoe.figures.wall_clock import draw
from d2dmoe.jobs.job import job

with job(snakemake):
    figure = draw(Path(snakemake.input[0]), **snakemake.params.cfg)
    save(figure, Path(snakemake.output.png), Path(snakemake.output.pdf))
