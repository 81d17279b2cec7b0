from pathlib import Path

from d2dmoe.benchmark.model import COLUMNS, model_rows
from d2dmoe.config.benchmarks import ModelBenchmark
from d2dmoe.csvfile import write_csv
from d2dmoe.run import timed_job
from d2dmoe.tensors import load_tensors

REMEDY = "Delete it and run the same command again."

with timed_job(snakemake) as device:
    masks = [load_tensors(Path(path), REMEDY)[0] for path in snakemake.input]
    rows = []
    for name, cfg in snakemake.params.cfg.items():
        rows += model_rows(name, ModelBenchmark(**cfg), device, masks[0] if masks else {})
    write_csv(Path(snakemake.output[0]), rows, COLUMNS)
