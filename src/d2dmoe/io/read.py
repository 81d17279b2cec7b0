"""What tables and figures are made of, by the ending of its file."""

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from d2dmoe.errors import DataError
from d2dmoe.lookup import look_up

TEXTS = (  # columns that hold texts, whatever these look like: a variant may be called nan, or 1
    *("task", "model", "dataset", "method", "variant", "knob", "metric", "role", "stages"),
    *("rival", "measure", "verdict", "label"),
    *("rates_tried", "device", "torch", "triton", "dtype", "activation", "mask", "backend"),
)
POSITIVE = ("flops", "flops_ratio", "params", "num_experts", "d_ff", "tokens", "median_ms")
MAY_BE_EMPTY = ("knob_value", "difference", "low", "high")
"""A model may have one operating point, no two curves a common cost, and an interval no end."""
ESTIMATE = re.compile(r"(flops_ratio|quality)_at_\d.*")  # so may what not every seed reaches
REMEDY = "Delete it and run the same command again: the step that makes it is then repeated."


def read_table(path: Path, columns: Collection[str] = ()) -> pd.DataFrame:
    """A table of results; texts stay as they are written, an empty cell of a number is NaN.

    Args:
        path: of the CSV file.
        columns: those that are needed: texts, and finite numbers.

    Raises:
        DataError: the file is missing or damaged, has no rows, lacks a column, or holds something
            else where a number is needed.
    """
    try:
        header = pd.read_csv(path, nrows=0).columns
        numbers = [column for column in header if column not in TEXTS]
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(TEXTS, str),
            keep_default_na=False,
            na_values=dict.fromkeys(numbers, [""]),
        )
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors
        raise DataError(f"{path} cannot be read ({str(error).strip()}). {REMEDY}") from error
    if table.empty or not isinstance(table.index, pd.RangeIndex):
        fault = "no rows" if table.empty else "more cells than columns"
        raise DataError(f"{path} is damaged: it has {fault}. {REMEDY}")
    if missing := [column for column in columns if column not in table]:
        raise DataError(f"{path} is damaged: it has no column {', '.join(missing)}. {REMEDY}")
    for column in columns:
        _check(path, column, table[column])
    return table


def _check(path: Path, name: str, column: pd.Series) -> None:
    wrong = column.isna()
    if name not in TEXTS:
        numbers = pd.to_numeric(column, errors="coerce").astype(float)
        may_be_empty = name in MAY_BE_EMPTY or ESTIMATE.fullmatch(name) is not None
        wrong = ~np.isfinite(numbers) & ~(wrong & may_be_empty)
        wrong |= (numbers <= 0) & (name in POSITIVE)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        found = "an empty cell" if pd.isna(column[row]) else f"'{str(column[row])[:60]}'"
        number = "a number above 0" if name in POSITIVE else "a finite number"
        needed = "a text" if name in TEXTS else number
        raise DataError(
            f"{path} is damaged: row {row} (from 0) has {found} in the column {name}, where "
            f"{needed} is needed. {REMEDY}"
        )


def _read_json(path: Path, _columns: Collection[str]) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_tensors(path: Path, _columns: Collection[str]) -> dict[str, np.ndarray]:
    return load_file(path)


READERS: dict[str, Callable[[Path, Collection[str]], Any]] = {
    ".csv": read_table,
    ".json": _read_json,
    ".safetensors": _read_tensors,
}


def read(path: Path, columns: Collection[str] = ()) -> Any:
    """A table as a DataFrame, JSON's own types, or numpy arrays by their names.

    Args:
        path: of the file.
        columns: those that are needed of a table.

    Raises:
        UnknownName: the file has another ending.
        DataError: the file is missing or damaged.
    """
    reader = look_up(READERS, path.suffix, "kind of file")
    try:
        return reader(path, columns)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}). {REMEDY}") from error
