from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.downstream import boolq

with stage_run(snakemake) as run:
    names = ("model", "tokenizer", "points", "dense")
    paths = {f"{name}_path": Path(snakemake.input[name]) for name in names}
    rows = boolq(**paths, cfg=snakemake.params.cfg, run=run)
    write_rows(Path(snakemake.output[0]), rows)
