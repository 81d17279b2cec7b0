from pathlib import Path

from d2dmoe.figures.drawing import drawing_files
from d2dmoe.io.files import scratch_folder
from d2dmoe.jobs.job import job
from d2dmoe.plan.published import drawings

with job(snakemake), scratch_folder() as scratch, drawing_files(snakemake.threads) as draw:
    for drawing in drawings(Path(snakemake.params.reference)):
        path = f"{snakemake.output[0]}/{drawing.name}"
        files = Path(f"{path}.png"), Path(f"{path}.pdf")
        draw(drawing.draw, drawing.files(scratch), drawing.arguments, *files)
