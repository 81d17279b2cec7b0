from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.run import stage_run
from d2dmoe.methods.ztw.stage import evaluate_exits

with stage_run(snakemake) as run:
    points = evaluate_exits(
        Path(snakemake.input.model),
        snakemake.params.cfg["values"],
        Path(snakemake.input.data[0]).parent,
        snakemake.wildcards.part,
        snakemake.params.cfg["batch_size"],
        run,
    )
    write_rows(Path(snakemake.output.points), points)
