from pathlib import Path

from d2dmoe.checkpoint import save_model
from d2dmoe.config.stages import SplitConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.split import split

with stage_run(snakemake) as run:
    model, spec = split(Path(snakemake.input.model), SplitConfig(**snakemake.params.cfg), run.seed)
    save_model(Path(snakemake.output.model), model, spec)
