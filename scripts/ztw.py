from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.stages import ZTWConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.methods.ztw.stage import train_ztw

with stage_run(snakemake) as run:
    trained = train_ztw(
        Path(snakemake.input.model),
        ZTWConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
