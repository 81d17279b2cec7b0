"""Progress of a job: plain lines in its log every few seconds, and the same live at a terminal."""

import logging
import sys
import time
from pathlib import Path

from d2dmoe.processes import place

logger = logging.getLogger("d2dmoe")


def log_to(path: Path, name: str = "") -> None:
    """Send the package's log lines to a file, and to standard error where a person watches it. Of
    several processes the first does so, and the others add their errors to the file.

    Args:
        path: the file.
        name: of the job, said in each line.
    """
    logger.setLevel(logging.INFO)
    logger.handlers.clear()
    rank = place().rank
    mode = "a" if rank else "w"
    handlers: list[logging.Handler] = [logging.FileHandler(path, mode, encoding="utf-8")]
    if rank:
        handlers[0].setLevel(logging.ERROR)
    elif sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
        handlers[-1].addFilter(
            lambda record: record.levelno < logging.ERROR
        )  # the console's to tell
    about = name.replace("%", "%%") + ": " if name else ""
    for handler in handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {about}%(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


class Progress:
    """Says how far a loop of `total` steps has come, at most every `every_s` seconds."""

    def __init__(self, what: str, total: int, done: int = 0, every_s: float = 10.0):
        self.what, self.total, self.every_s = what, total, every_s
        self.first, self.start = done, time.monotonic()
        self.last = self.start

    def update(self, done: int, detail: str = "") -> None:
        """Log a line if it is time for one; `done` steps of `total` are done."""
        now = time.monotonic()
        if now - self.last < self.every_s and done < self.total:
            return
        self.last = now
        rate = (now - self.start) / max(1, done - self.first)  # seconds per step
        left = rate * (self.total - done)
        logger.info("%s %d/%d %s (%.0f s left)", self.what, done, self.total, detail, left)
