"""What a person sees of a run: a line when a job starts and ends, failures with their cause, and a
summary. Snakemake finds it as its logger `d2dmoe`, which the profile names."""

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from d2dmoe.jobs.names import name_of

NOISE = re.compile(
    "Using workflow specific profile|host: |Building DAG|Using shell|Select jobs|Execute |Complete"
    "|Will exit after|Exiting because|Shutting down|Removing output files|Touching output"
    "|At least one job did not complete|WorkflowError:\nAt least one job"
    "|Some jobs were triggered|Rules with provenance|Assuming unrestricted|Reasons:"
    "|No SLURM account|Loading script code|Adding |Downloading resources|Creating report"
)  # said at each start or after each failure, or said better here
ENDED = "Elapsed time"  # what Snakemake says last
DRY_RUN_ENDED = "This was a dry-run"
INTERRUPTED = "Terminating processes"
WHERE = re.compile(r"^\w+ in file \".*\", line \d+:\n|^ *File \".*\", line \d+.*\n?", re.MULTILINE)
REASONS = {  # Snakemake's, as they begin, the telling ones first
    "Missing output": "not made yet",
    "Incomplete output": "was interrupted",
    "Params have": "options or code changed",
    "Set of input": "has other inputs",
    "Updated input": "its input changed",
    "Input files updated": "its input is made anew",
    "Forced": "forced",
    "Rules with": "made at every call",
}
LAST_LINES = 12  # of a log in which no error message stands
SHOWN = 3  # names per line of a dry run


class Console(LogHandlerBase):
    """Writes a run's events to a terminal or file as short lines."""

    variants: ClassVar[Mapping[str, str]] = {}  # by folder; the workflow sets it

    def __post_init__(self) -> None:
        self.stream = sys.stdout if self.common_settings.stdout else sys.stderr
        self.began: dict[int, float] = {}  # when each job did, in seconds
        self.jobs: dict[int, Any] = {}  # records that describe them
        self.made: list[str] = []  # files
        self.failed: dict[int, str] = {}  # names of jobs; one that is repeated may leave it
        self.done = self.total = 0
        self.interrupted = False
        self.cause = ""  # of the failure that is reported next

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write what a record says, if anything."""
        react: dict[Any, Callable[[Any], str]] = {
            LogEvent.RUN_INFO: self._run,
            LogEvent.JOB_INFO: self._start,
            LogEvent.JOB_FINISHED: self._finish,
            LogEvent.JOB_ERROR: self._fail,
            LogEvent.ERROR: self._error,
            None: self._message,
        }
        quiet = self.common_settings.quiet or ()
        silent = "ALL" in {q.name for q in quiet} and record.levelno < logging.WARNING
        try:
            text = react.get(getattr(record, "event", None), lambda record: "")(record)
            if text and not (silent and not self.common_settings.dryrun):
                self.stream.write(text.rstrip() + "\n")
                self.stream.flush()
        except Exception:
            self.handleError(record)

    def _run(self, record: Any) -> str:
        counts = dict(record.stats)
        self.total = counts.pop("total", sum(counts.values()))
        if self.common_settings.dryrun:
            return ""
        rules = ", ".join(f"{count} {rule}" for rule, count in counts.items())
        return f"{_jobs(self.total)}: {rules}"

    def _start(self, record: Any) -> str:
        self.jobs[record.jobid], self.began[record.jobid] = record, time.monotonic()
        if self.common_settings.dryrun or not record.log:  # what has no log is but a target
            return ""
        return _line("start", self._about(record))

    def _finish(self, record: Any) -> str:
        job = self.jobs.get(record.job_id)
        if job is None or self.common_settings.dryrun:
            return ""
        self.done += 1
        self.failed.pop(record.job_id, None)
        self.made += job.output
        if not job.log:
            return ""
        seconds = time.monotonic() - self.began[record.job_id]
        took = f"({seconds:.0f} s, {self.done} of {self.total})"
        return _line("done", f"{self._about(job)} {took}")

    def _fail(self, record: Any) -> str:
        job = self.jobs.get(record.jobid)
        name = self._about(job) if job else record.rule_name
        if self.interrupted:
            return _line("stopped", name)
        self.failed[record.jobid] = name
        lines = [_line("FAILED", name)]
        causes = _causes(record.log) or [self.cause or "its process was killed"]
        lines += [f"    {line}" for line in causes]
        lines += [f"    log: {log}" for log in record.log]
        self.cause = ""
        return "\n".join(lines)

    def _error(self, record: Any) -> str:
        text = record.getMessage()
        if "CalledProcessError" in text:  # the job's log says why
            status = re.search(r"(died with|returned non-zero exit status) .*", text)
            self.cause = f"the job's process {status[0]}" if status else text
            return ""
        return self._message(record)

    def _message(self, record: Any) -> str:
        text = str(record.msg or "")
        if text.startswith(DRY_RUN_ENDED):
            return self._dry_run()
        if text.startswith(ENDED):
            return self._summary(text.removeprefix(f"{ENDED}: "))
        if text.startswith(INTERRUPTED):
            self.interrupted = True
            return "stopping; trainings save their state first"
        if record.levelno < logging.INFO or NOISE.match(text.lstrip()):
            return ""
        return WHERE.sub("", text) if record.levelno >= logging.ERROR else text

    def _about(self, job: Any) -> str:
        return f"{job.rule_name}  {name_of(job.wildcards, self.variants)}".strip()

    def _dry_run(self) -> str:
        """The jobs that would run, by rule and reason."""
        groups: dict[tuple[str, str], list[str]] = {}
        jobs: list[Any] = [job for job in self.jobs.values() if job.log]  # others are but targets
        for job in jobs:
            key = (job.rule_name, _reason(job.reason))
            groups.setdefault(key, []).append(name_of(job.wildcards, self.variants))
        lines = [
            f"{len(names):5}  {rule:18} {reason:24} {_some(names)}".rstrip()
            for (rule, reason), names in groups.items()
        ]
        return "\n".join([*lines, f"{len(jobs):5}  jobs would run"])

    def _summary(self, took: str) -> str:
        seconds = _seconds(took)
        done = f"{self.done} of {_jobs(self.total)} done in {timedelta(seconds=seconds)}"
        if self.interrupted:
            return f"stopped: {done}. The same command goes on from here."
        lines = [done, *_places(self.made)]
        if self.failed:
            lines.append(f"{len(self.failed)} failed:")
            lines += [f"    {name}" for name in self.failed.values()]
            lines.append("Once the causes are mended, the same command does what is left.")
        return "\n".join(lines)


def _line(what: str, about: str) -> str:
    return f"{time.strftime('%H:%M:%S')} {what:7} {about}"


def _jobs(number: int) -> str:
    return f"{number} job" + "s" * (number != 1)


def _causes(logs: list[str]) -> list[str]:
    """The error message in a job's logs, or else their last lines."""
    texts = [_read(Path(log)) for log in logs]
    for text in texts:
        _, found, message = text.rpartition("error: ")
        if found:
            return (found + message).splitlines()
    return "".join(texts).splitlines()[-LAST_LINES:]


def _read(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _reason(reason: str) -> str:
    """Snakemake's reasons without the files, which can be hundreds."""
    found = [own for begin, own in REASONS.items() if re.search(rf"(^|; ){begin}", reason)]
    return found[0] if found else reason[:60]


def _some(names: list[str]) -> str:
    names = [*dict.fromkeys(name for name in names if name)]
    more = f"; {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def _places(files: list[str]) -> list[str]:
    """How many files were made in each of a result's folders."""
    lines = []
    for folder in ("figures", "tables", "benchmarks", "models", "data"):
        number = sum(file.startswith(f"results/{folder}/") for file in files)
        if number:
            lines.append(f"{number:5}  files in results/{folder}")
    return lines


def _seconds(took: str) -> int:
    """Of "1 day, 2:03:04.5" or "0:00:02.9"."""
    days, _, clock = took.rpartition(", ")
    hours, minutes, seconds = clock.split(":")
    whole = int(days.split()[0]) if days else 0
    return whole * 86400 + int(hours) * 3600 + int(minutes) * 60 + round(float(seconds))
