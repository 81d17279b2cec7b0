from pathlib import Path

import pandas as pd

from d2dmoe.figures.style import save
from d2dmoe.figures.tradeoff import draw
from d2dmoe.jobs.job import job

with job(snakemake):
    table = pd.read_csv(snakemake.input[0])
    figure = draw(table, snakemake.params.panels, snakemake.params.title)
    save(figure, Path(snakemake.output.png), Path(snakemake.output.pdf))
