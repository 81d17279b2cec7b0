from pathlib import Path

from d2dmoe.config.data import DataConfig
from d2dmoe.data import prepare
from d2dmoe.run import stage_run

with stage_run(snakemake):
    folder = Path(snakemake.output.about).parent
    prepare(DataConfig(**snakemake.params.cfg), Path.cwd(), folder)
