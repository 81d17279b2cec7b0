from pathlib import Path

import pandas as pd

from d2dmoe.figures.activity import draw
from d2dmoe.figures.style import save
from d2dmoe.jobs.job import job

with job(snakemake):
    table = pd.read_csv(snakemake.input[0])
    figure = draw(
        table,
        snakemake.wildcards.task,
        snakemake.params.cfg["variants"],
        snakemake.params.cfg["labels"],
    )
    save(figure, Path(snakemake.output.png), Path(snakemake.output.pdf))
