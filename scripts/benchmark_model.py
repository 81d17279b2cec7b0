from pathlib import Path

from d2dmoe.benchmark.masks import load_points
from d2dmoe.benchmark.model import COLUMNS, model_rows
from d2dmoe.config.benchmarks import ModelBenchmark
from d2dmoe.csvfile import write_csv
from d2dmoe.run import timed_job

with timed_job(snakemake) as device:
    points, rows = load_points(snakemake.input), []
    for name, cfg in snakemake.params.cfg.items():
        rows += model_rows(name, ModelBenchmark(**cfg), device, points)
    write_csv(Path(snakemake.output[0]), rows, COLUMNS)
