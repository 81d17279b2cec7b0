from pathlib import Path

from d2dmoe.benchmark.decode import COLUMNS, decode_rows
from d2dmoe.config.benchmarks import decode_benchmark
from d2dmoe.csvfile import write_csv
from d2dmoe.run import timed_job

with timed_job(snakemake) as device:
    rows = []
    for name, cfg in snakemake.params.cfg.items():
        rows += decode_rows(name, decode_benchmark(cfg), device)
    write_csv(Path(snakemake.output[0]), rows, COLUMNS)
