from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.io.tensors import save_tensors
from d2dmoe.jobs.run import stage_run
from d2dmoe.lookup import resolve

with stage_run(snakemake) as run:
    measure, model = resolve(snakemake.params.measure), Path(snakemake.input.model)
    for split in snakemake.params.splits:
        cfg = snakemake.params.cfg | {"split": split}
        found = measure(model, snakemake.wildcards.knob, cfg, run)
        if found.layers is not None:
            write_rows(Path(snakemake.output[f"{split}_layers"]), found.layers)
        write_rows(Path(snakemake.output[f"{split}_points"]), found.points)
        save_tensors(Path(snakemake.output[f"{split}_samples"]), found.samples)
