from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.sparsify import activity

with stage_run(snakemake) as run:
    rows = activity(
        Path(snakemake.input.model),
        Path(snakemake.input.data[0]).parent,
        snakemake.wildcards.part,
        snakemake.params.cfg["batch_size"],
        run,
    )
    write_rows(Path(snakemake.output[0]), rows)
