from pathlib import Path

from d2dmoe.figures.drawing import draw_files
from d2dmoe.jobs.job import job

with job(snakemake):
    draw_files(
        snakemake.params.draw,
        {name: Path(path) for name, path in snakemake.input.items()},
        snakemake.params.cfg,
        Path(snakemake.output.png),
        Path(snakemake.output.pdf),
    )
