from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.stages import RouterConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.routers import train_routers

with stage_run(snakemake) as run:
    trained = train_routers(
        Path(snakemake.input.model),
        RouterConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
