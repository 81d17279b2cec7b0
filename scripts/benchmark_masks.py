from pathlib import Path

from d2dmoe.io.tensors import save_tensors
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.masks import record_masks

with stage_run(snakemake) as run:
    cfg, knob = snakemake.params.cfg, snakemake.params.knob
    tensors = record_masks(Path(snakemake.input.model), knob, cfg, run)
    save_tensors(Path(snakemake.output[0]), tensors)
