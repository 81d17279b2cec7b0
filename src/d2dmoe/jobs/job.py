"""One job of the workflow: its log, and how its errors are told."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2dmoe.errors import UserError
from d2dmoe.extensions import import_extensions
from d2dmoe.jobs.progress import log_to, logger


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Log to the job's first log file; a `UserError` ends the job with its message alone.

    Args:
        snakemake: the object that the workflow gives to scripts; its `log` is used, and the
            `extensions` of its `config` are imported.
    """
    log_to(Path(snakemake.log[0]))
    began = time.monotonic()
    try:
        import_extensions(snakemake.config)
        yield
    except UserError as error:
        logger.error("error: %s", error)
        if not sys.stderr.isatty():  # at a terminal the log's live copy has said it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    logger.info("done in %.1f s, peak memory %.0f MiB", time.monotonic() - began, peak)
