from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.token_load import token_load

with stage_run(snakemake) as run:
    model, knob, cfg = snakemake.input.model, snakemake.wildcards.knob, snakemake.params.cfg
    tokenizer = snakemake.input.tokenizer  # of images none
    rows = token_load(Path(model), knob, cfg, run, Path(tokenizer) if tokenizer else None)
    write_rows(Path(snakemake.output.table), rows)
