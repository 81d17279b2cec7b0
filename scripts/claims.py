from pathlib import Path

from d2dmoe import tables
from d2dmoe.claims.evidence import evidence_of
from d2dmoe.claims.ledger import COLUMNS, ledger
from d2dmoe.io.csvfile import write_csv
from d2dmoe.io.read import read_table
from d2dmoe.jobs.job import job
from d2dmoe.page import write_page

with job(snakemake):
    read = {k: read_table(Path(path), tables.COLUMNS[k]) for k, path in snakemake.input.items()}
    evidence = [evidence_of(task, read, **cfg) for task, cfg in snakemake.params.cfg.items()]
    write_csv(Path(snakemake.output[0]), ledger(evidence), COLUMNS)
    write_page(Path(snakemake.output.page), Path(snakemake.output[0]))
