import json
from pathlib import Path

from safetensors.numpy import load_file

from d2dmoe.figures.load_maps import draw
from d2dmoe.figures.style import save
from d2dmoe.jobs.job import job

with job(snakemake):
    classes = json.loads(Path(snakemake.input.about).read_text())["classes"]
    figure = draw(load_file(snakemake.input.tensors), classes)
    save(figure, Path(snakemake.output.png), Path(snakemake.output.pdf))
