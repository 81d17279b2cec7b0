from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.activity import activity

with stage_run(snakemake) as run:
    batch_size = snakemake.params.cfg["batch_size"]
    rows = activity(Path(snakemake.input.model), snakemake.wildcards.split, batch_size, run)
    write_rows(Path(snakemake.output[0]), rows)
