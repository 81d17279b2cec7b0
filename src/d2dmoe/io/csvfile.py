"""CSV files whose bytes repeat: fixed number format, atomic writing."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from d2dmoe.io.files import write_atomically


def write_csv(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV, atomically; numbers with 10 significant digits, so that bytes repeat.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(row[column]) for column in columns] for row in rows)
    write_atomically(path, lambda p: p.write_text(buffer.getvalue(), encoding="utf-8"))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return str(value)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the first one's columns; `rows` must not be empty."""
    write_csv(path, rows, list(rows[0]))
