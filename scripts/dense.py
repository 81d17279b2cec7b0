from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.model import model_config
from d2dmoe.config.training import TrainingConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.dense import train_dense

with stage_run(snakemake) as run:
    trained = train_dense(
        model_config(snakemake.params.model),
        TrainingConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
