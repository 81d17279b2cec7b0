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
from d2dmoe.jobs.names import name_of
from d2dmoe.jobs.progress import log_to, logger


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Log to the job's first log file; a `UserError` ends the job with its message alone.

    Args:
        snakemake: the object that the workflow gives to scripts; used are its `log`, its
            `wildcards`, and of its `config` the `extensions`, which are imported, and
            `variants_by_folder`.
    """
    variants = snakemake.config.get("variants_by_folder", {})
    log_to(Path(snakemake.log[0]), name_of(dict(snakemake.wildcards.items()), variants))
    began = time.monotonic()
    try:
        import_extensions(snakemake.config)
        yield
    except UserError as error:
        logger.error("error: %s", error)
        sys.exit(1)
    except Exception:
        logger.exception("error: a fault of this program, not of its input")
        sys.exit(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    logger.info("done in %.1f s, peak memory %.0f MiB", time.monotonic() - began, peak)
