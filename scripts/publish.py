from pathlib import Path

from d2dmoe.io.files import copy_into
from d2dmoe.jobs.job import job

with job(snakemake):
    folder = Path(snakemake.output[0])
    copy_into(folder, snakemake.params.files)
    (folder / "config.yaml").write_text(snakemake.params.config, encoding="utf-8")
