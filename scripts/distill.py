from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.compression import DistillConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.distill import distill

with stage_run(snakemake) as run:
    trained = distill(
        Path(snakemake.input.model),
        DistillConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
