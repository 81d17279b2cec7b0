from pathlib import Path

from d2dmoe.io.tensors import save_tensors
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.masks import record_masks

with stage_run(snakemake) as run:
    tensors = record_masks(
        Path(snakemake.input.model),
        snakemake.params.cfg["values"],
        snakemake.params.cfg["samples"],
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_tensors(Path(snakemake.output[0]), tensors)
