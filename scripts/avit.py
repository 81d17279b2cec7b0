from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.avit import AViTConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.methods.avit.stage import train_avit

with stage_run(snakemake) as run:
    trained = train_avit(
        Path(snakemake.input.model),
        AViTConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
