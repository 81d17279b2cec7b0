from pathlib import Path

from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.job import job
from d2dmoe.page import write_page
from d2dmoe.tables import gather

with job(snakemake):
    write_rows(Path(snakemake.output[0]), gather(snakemake.params.entries))
    if "page" in snakemake.output.keys():
        write_page(Path(snakemake.output.page), Path(snakemake.output[0]))
