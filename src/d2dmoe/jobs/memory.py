"""The host's memory that a process may still take."""

import sys
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")  # control groups, version 2, by which SLURM and containers limit


def free_memory() -> int:
    """Bytes that this process may take of the machine's memory, and of its control groups'."""
    free = psutil.virtual_memory().available
    with suppress(OSError, LookupError, ValueError):
        own = GROUPS / _name()
        for group in (own, *own.parents):
            free = min(free, _left(group))
    return free


def _name() -> str:
    """Of the process's group, below the root of all."""
    return Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()


def _left(group: Path) -> int:
    """Bytes that a group's limit leaves; pages of files that were not used lately are given up."""
    limit = group / "memory.max"
    text = limit.read_text().strip() if limit.exists() else "max"
    if text == "max":
        return sys.maxsize
    lines = (group / "memory.stat").read_text().splitlines()
    given_up = dict(line.split() for line in lines)["inactive_file"]
    return int(text) - int((group / "memory.current").read_text()) + int(given_up)
