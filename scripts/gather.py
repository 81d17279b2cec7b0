from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.job import job
from d2dmoe.page import write_page
from d2dmoe.tables import COLUMNS, POINT, gather

with job(snakemake):
    table = Path(snakemake.output[0])
    needed = [column for column in COLUMNS.get(table.stem, ()) if column not in POINT]
    write_rows(table, gather(snakemake.params.entries, needed))
    if "page" in snakemake.output.keys():
        write_page(Path(snakemake.output.page), table)
