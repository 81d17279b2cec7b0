from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.io.tensors import save_tensors
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.evaluate import load_maps

with stage_run(snakemake) as run:
    knob, cfg = snakemake.wildcards.knob, snakemake.params.cfg
    tensors, rows = load_maps(Path(snakemake.input.model), knob, cfg, run)
    save_tensors(Path(snakemake.output.tensors), tensors)
    write_rows(Path(snakemake.output.table), rows)
