"""A table as the page holds it: columns, short, with the numbers as the CSV file has them."""

import math
from itertools import groupby
from typing import Any

import pandas as pd

REPEATED = 3  # a column whose values come so often at least is written as places in a list of them


def columns(table: pd.DataFrame) -> dict[str, Any]:
    """By column: its values, or `of`, the different ones, with `at`, the place of each row's, or
    `runs`, each place in turn with how many rows it holds for.

    Empty and infinite cells are None.
    """
    return {str(name): _column(table[name]) for name in table}


def _column(column: pd.Series) -> Any:
    values = [_plain(value) for value in column]
    different = list(dict.fromkeys(values))
    if len(values) < REPEATED * len(different):
        return values
    places = {value: place for place, value in enumerate(different)}
    at = [places[value] for value in values]
    runs = [number for place, same in groupby(at) for number in (place, len([*same]))]
    return {"of": different} | ({"runs": runs} if len(runs) < len(at) else {"at": at})


def _plain(value: Any) -> Any:
    """A value as JSON has it; whole numbers without a point, and None for no or no finite one."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return None if not math.isfinite(value) else int(value) if value.is_integer() else value
    return None if pd.isna(value) else value
