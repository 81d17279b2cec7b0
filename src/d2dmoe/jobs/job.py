"""One job of the workflow: its log, how its errors are told, and what is known of its results."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2dmoe.errors import UserError, full_memory, shortened
from d2dmoe.extensions import import_extensions
from d2dmoe.io.checksums import check_all, write_checksums
from d2dmoe.jobs.attempts import counted
from d2dmoe.jobs.names import name_of
from d2dmoe.jobs.progress import log_to, logger
from d2dmoe.jobs.record import identity_of, save_record
from d2dmoe.processes import leads

STATES = Path("results/.state")  # of interrupted jobs
MEMORY = (
    "Lower the batch_size of the stage, or the task's eval_batch_size where a model is measured; "
    "or run fewer jobs at once: runtime.jobs_per_gpu on a GPU, --cores on a CPU."
)
QUIET = {  # of libraries that would fill the jobs' logs; they ask when they are imported
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextmanager
def job(snakemake: Any) -> Iterator[str]:
    """Log to the job's first log file; a `UserError` ends the job with its message alone.

    The inputs are checked before the job reads them. When it is done, checksums are written beside
    its results; its record too, where the workflow asks for it as output `record`.

    Args:
        snakemake: the object that the workflow gives to scripts. Used are `log`, of `config` the
            `extensions` and `variants_by_folder`, `rule`, and all of `input`, `output`, `params`
            and `wildcards`.

    Yields:
        A name for all that the results depend on.
    """
    variants = snakemake.config.get("variants_by_folder", {})
    os.environ.update(QUIET)
    log_to(Path(snakemake.log[0]), name_of(dict(snakemake.wildcards.items()), variants))
    began = time.monotonic()
    try:
        import_extensions(snakemake.config)
        with _traced(snakemake) as identity:
            yield identity
    except UserError as error:
        logger.error("error: %s", error)
        sys.exit(1)
    except Exception as error:
        if owner := full_memory(error):
            logger.error("error: %s memory is full. %s (%s)", owner, MEMORY, shortened(str(error)))
        else:
            logger.exception("error: a fault of this program, not of its input")
        sys.exit(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    logger.info("done in %.1f s, peak memory %.0f MiB", time.monotonic() - began, peak)


@contextmanager
def _traced(snakemake: Any) -> Iterator[str]:
    """Check what a job reads, and leave its record and the checksums of its results."""
    sources = check_all(snakemake.input)
    params = dict(snakemake.params.items())
    identity = identity_of(params | {"log": snakemake.log[0]}, sources)  # no two jobs share a log
    record, notes = snakemake.output.get("record"), STATES / f"{identity}.json"
    if record:
        with counted(notes) as attempts:
            yield identity
            save_record(Path(record), snakemake.rule, params["code"], attempts())
    else:
        yield identity
    if not leads():
        return
    for path in map(Path, snakemake.output):
        if path.is_file():  # no job reads a folder
            write_checksums(path, sources)
    notes.unlink(missing_ok=True)
