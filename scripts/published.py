from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from d2dmoe.figures.drawing import draw_files
from d2dmoe.io.files import scratch_folder
from d2dmoe.jobs.job import job
from d2dmoe.plan.published import drawings

with job(snakemake), scratch_folder() as scratch, ProcessPoolExecutor(snakemake.threads) as pool:
    drawn = []
    for drawing in drawings(Path(snakemake.params.reference)):
        path = f"{snakemake.output[0]}/{drawing.name}"
        of = (drawing.draw, drawing.files(scratch), drawing.arguments)
        drawn.append(pool.submit(draw_files, *of, Path(f"{path}.png"), Path(f"{path}.pdf")))
    for figure in drawn:
        figure.result()
