from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.io.tensors import save_tensors
from d2dmoe.jobs.run import stage_run
from d2dmoe.stages.evaluate import load_maps

with stage_run(snakemake) as run:
    tensors, rows = load_maps(
        Path(snakemake.input.model),
        snakemake.wildcards.knob,
        snakemake.params.cfg["value"],
        snakemake.params.cfg["images"],
        Path(snakemake.input.data[0]).parent,
        "test",
        run,
    )
    save_tensors(Path(snakemake.output.tensors), tensors)
    write_rows(Path(snakemake.output.table), rows)
