"""The console of d2dmoe where Snakemake looks for loggers: `snakemake --logger d2dmoe`."""

from d2dmoe.jobs.console import Console as LogHandler

__all__ = ["LogHandler"]
