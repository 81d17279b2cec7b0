from pathlib import Path

from d2dmoe.config.data import data_config
from d2dmoe.data.tokenizer import make_tokenizer
from d2dmoe.jobs.job import job

with job(snakemake):
    make_tokenizer(data_config(snakemake.params.cfg), Path.cwd(), Path(snakemake.output[0]))
