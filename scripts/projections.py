from pathlib import Path

from d2dmoe.checkpoint import save_trained
from d2dmoe.config.stages import ProjectionsConfig
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.projections import convert_projections

with stage_run(snakemake) as run:
    trained = convert_projections(
        Path(snakemake.input.model),
        ProjectionsConfig(**snakemake.params.cfg),
        Path(snakemake.input.data[0]).parent,
        run,
    )
    save_trained(trained, snakemake.output.model, snakemake.output.history)
    run.state.remove()
