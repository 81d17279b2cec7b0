from pathlib import Path

from d2dmoe.checkpoint import save_lineage, save_model
from d2dmoe.jobs.run import stage_run
from d2dmoe.lookup import resolve
from d2dmoe.stages import STAGES

with stage_run(snakemake) as run:
    stage = STAGES[snakemake.params.lineage["stage"]]
    options = resolve(stage.options).model_validate(snakemake.params.cfg)
    model, spec, _ = resolve(stage.make)(Path(snakemake.input.model), options, run)
    save_lineage(Path(snakemake.output.lineage), snakemake.params.lineage)
    save_model(Path(snakemake.output.model), model, spec)
