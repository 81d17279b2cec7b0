from pathlib import Path

from d2dmoe.io.csvfile import write_csv
from d2dmoe.jobs.job import job
from d2dmoe.significance import statistics
from d2dmoe.tables import COMPARISON, SUMMARY

with job(snakemake):
    summary, comparisons = statistics(snakemake.params.entries, **snakemake.params.cfg)
    write_csv(Path(snakemake.output.summary), summary, SUMMARY)
    write_csv(Path(snakemake.output.comparisons), comparisons, COMPARISON)
