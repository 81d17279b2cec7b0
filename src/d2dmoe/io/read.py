"""What figures are drawn of, by the ending of its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.numpy import load_file

from d2dmoe.lookup import look_up

READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": pd.read_csv,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".safetensors": load_file,
}


def read(path: Path) -> Any:
    """A table as a DataFrame, JSON's own types, or numpy arrays by their names.

    Raises:
        UnknownName: the file has another ending.
    """
    return look_up(READERS, path.suffix, "kind of file")(path)
