from pathlib import Path

from d2dmoe.checkpoint import save_model
from d2dmoe.config.compression import QuantizeConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.quantize import quantize

with stage_run(snakemake):
    model, spec = quantize(Path(snakemake.input.model), QuantizeConfig(**snakemake.params.cfg))
    save_model(Path(snakemake.output.model), model, spec)
