from pathlib import Path

from d2dmoe.benchmark.decode import COLUMNS, decode_rows
from d2dmoe.config.benchmarks import decode_benchmark
from d2dmoe.io.csvfile import write_csv
from d2dmoe.jobs.run import timed_job

with timed_job(snakemake) as device:
    cfg = decode_benchmark(snakemake.params.cfg)
    rows = decode_rows(snakemake.wildcards.entry, cfg, device)
    write_csv(Path(snakemake.output[0]), rows, COLUMNS)
