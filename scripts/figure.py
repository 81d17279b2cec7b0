from pathlib import Path

from d2dmoe.figures.style import save
from d2dmoe.io.read import read
from d2dmoe.jobs.job import job
from d2dmoe.lookup import resolve

with job(snakemake):
    inputs = {name: read(Path(path)) for name, path in snakemake.input.items()}
    figure = resolve(snakemake.params.draw)(**inputs, **snakemake.params.cfg)
    save(figure, Path(snakemake.output.png), Path(snakemake.output.pdf))
