from pathlib import Path

from d2dmoe.checkpoint import save_history, save_lineage, save_model
from d2dmoe.jobs.run import stage_run
from d2dmoe.lookup import resolve
from d2dmoe.stages import STAGES

with stage_run(snakemake) as run:
    stage = STAGES[snakemake.params.lineage["stage"]]
    options = resolve(stage.options).model_validate(snakemake.params.cfg)
    parent = snakemake.input.get("model")
    model, spec, history = resolve(stage.make)(Path(parent) if parent else None, options, run)
    save_lineage(Path(snakemake.output.lineage), snakemake.params.lineage)
    save_history(Path(snakemake.output.history), history)
    save_model(Path(snakemake.output.model), model, spec)
    run.state.remove()
