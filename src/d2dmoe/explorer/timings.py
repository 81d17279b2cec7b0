"""What the page shows of the benchmarks: times over the share of experts that run."""

from pathlib import Path
from typing import Any

from d2dmoe.explorer.columns import columns
from d2dmoe.explorer.results import look
from d2dmoe.figures.wall_clock import BACKENDS, MASKS
from d2dmoe.io.read import read_table
from d2dmoe.tables import COLUMNS


def timings(path: Path, name: str) -> dict[str, Any]:
    """All that the page holds of one table of benchmarks.

    Raises:
        DataError: the table is damaged.
    """
    return {"name": name, "table": columns(read_table(path, COLUMNS["table"]))}


def claims(path: Path) -> dict[str, Any]:
    """The verdicts on claims of wall-clock time."""
    return columns(read_table(path))


def backends() -> dict[str, Any]:
    """The forms of a layer that are timed: what they are called, and how they look."""
    return {name: {"label": text, "look": look(signs)} for name, (text, signs) in BACKENDS.items()}


def masks() -> dict[str, str]:
    """Which experts run, in words."""
    return MASKS
