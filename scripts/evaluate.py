from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import stage_run
from d2dmoe.lookup import resolve

with stage_run(snakemake) as run:
    measure = resolve(snakemake.params.measure)
    knob, cfg = snakemake.wildcards.knob, snakemake.params.cfg
    points, layers = measure(Path(snakemake.input.model), knob, cfg, run)
    if layers is not None:
        write_rows(Path(snakemake.output.layers), layers)
    write_rows(Path(snakemake.output.points), points)
