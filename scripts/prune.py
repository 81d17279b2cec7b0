from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.compression import PruneConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.prune import prune

with stage_run(snakemake) as run:
    trained = prune(
        Path(snakemake.input.model),
        PruneConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
