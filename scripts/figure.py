from pathlib import Path

from d2dmoe.figures.style import save
from d2dmoe.io.read import read
from d2dmoe.jobs.job import job
from d2dmoe.lookup import resolve
from d2dmoe.tables import COLUMNS

with job(snakemake):
    files = snakemake.input.items()
    inputs = {name: read(Path(path), COLUMNS.get(name, ())) for name, path in files}
    figure = resolve(snakemake.params.draw)(**inputs, **snakemake.params.cfg)
    save(figure, Path(snakemake.output.png), Path(snakemake.output.pdf))
