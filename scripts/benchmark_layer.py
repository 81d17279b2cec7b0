from pathlib import Path

from d2dmoe.benchmark.layer import COLUMNS, all_rows
from d2dmoe.benchmark.masks import load_points
from d2dmoe.config.benchmarks import LayerBenchmark
from d2dmoe.io.csvfile import write_csv
from d2dmoe.jobs.run import timed_job

with timed_job(snakemake) as device:
    cfg = LayerBenchmark(**snakemake.params.cfg)
    rows = all_rows(cfg, device, load_points(snakemake.input))
    write_csv(Path(snakemake.output[0]), rows, COLUMNS)
