from pathlib import Path

from d2dmoe.explorer.page import write_page
from d2dmoe.jobs.job import job
from d2dmoe.plan.explored import own
from d2dmoe.plan.published import parsed

with job(snakemake):
    plan = parsed(snakemake.params.config)
    shown = own(plan, snakemake.wildcards.suite, Path("results"), snakemake.params.configfiles)
    write_page(Path(snakemake.output[0]), shown)
