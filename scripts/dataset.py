from pathlib import Path

from d2dmoe.config.data import data_config
from d2dmoe.data.prepare import prepare
from d2dmoe.jobs.run import stage_run

with stage_run(snakemake):
    folder = Path(snakemake.output.about).parent
    tokenizer = snakemake.input.tokenizer  # empty for images
    prepare(
        data_config(snakemake.params.cfg),
        Path.cwd(),
        folder,
        Path(tokenizer) if tokenizer else None,
    )
