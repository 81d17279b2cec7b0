"""The record of a job: by which code, versions and machine, and in what time, its result was made.

All attempts count. The record of a job that was killed and repeated tells of both.
"""

import hashlib
import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2dmoe.io.files import write_atomically
from d2dmoe.jobs.attempts import Attempt
from d2dmoe.jobs.environment import commit, hardware, versions


def identity_of(job: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """A name for all that a job's result depends on.

    Args:
        job: everything but files: options, digest of the code, where its log lies.
        sources: SHA-256 of the files that it reads; their contents count, not their names.
    """
    parts = [json.dumps(job, sort_keys=True), *(sources[name] for name in sorted(sources))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def save_record(path: Path, rule: str, code: str, attempts: Sequence[Attempt]) -> None:
    """Write the record of a job as JSON, atomically.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    record = {
        "rule": rule,
        "commit": commit(Path(__file__).parent),
        "code": code,  # digest of what the job imports
        "versions": versions(),
        "hardware": hardware(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "s": round(sum(attempt["s"] for attempt in attempts), 1),  # wall time of all attempts
        "attempts": list(attempts),
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
