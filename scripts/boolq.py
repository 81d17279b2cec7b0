from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.downstream import boolq

with stage_run(snakemake) as run:
    rows = boolq(
        Path(snakemake.input.model),
        Path(snakemake.input.tokenizer),
        Path(snakemake.input.points),
        Path(snakemake.input.dense),
        Path(snakemake.input.data[0]).parent,
        snakemake.params.cfg,
        run,
    )
    write_rows(Path(snakemake.output[0]), rows)
