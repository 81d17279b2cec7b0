from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.io.tensors import save_tensors
from d2dmoe.jobs.run import stage_run
from d2dmoe.lookup import resolve

with stage_run(snakemake) as run:
    measure, model = resolve(snakemake.params.measure), Path(snakemake.input.model)
    knob, cfg = snakemake.wildcards.knob, snakemake.params.cfg
    if snakemake.params.choose:
        cfg = cfg | {"chosen": resolve(snakemake.params.choose)(model, knob, cfg, run)}
    for split in snakemake.params.splits:
        found = measure(model, knob, cfg | {"split": split}, run)
        if found.layers is not None:
            write_rows(Path(snakemake.output[f"{split}_layers"]), found.layers)
        write_rows(Path(snakemake.output[f"{split}_points"]), found.points)
        save_tensors(Path(snakemake.output[f"{split}_samples"]), found.samples)
