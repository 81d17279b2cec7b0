from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.stages import SparsifyConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.sparsify import sparsify

with stage_run(snakemake) as run:
    trained = sparsify(
        Path(snakemake.input.model),
        SparsifyConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
