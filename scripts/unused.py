from pathlib import Path

from d2dmoe.io.unused import find_unused, remove, report
from d2dmoe.jobs.job import job

with job(snakemake):
    unused = find_unused(Path("results"), snakemake.params.used)
    if snakemake.params.removes:
        remove(unused)
    print(report(unused, snakemake.params.removes))
