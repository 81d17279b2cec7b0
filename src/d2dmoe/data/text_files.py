"""Files of texts, by their endings: rows of named cells, read one after the other."""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from d2dmoe.errors import DataError

Rows = Iterator[Mapping[str, Any]]


def read_rows(path: Path) -> Rows:
    """The rows of a file of one of the endings of `READERS`, all but parquet gzipped or not.

    Raises:
        Exception: the reader's own, where the file is damaged.
    """
    yield from READERS[_ending(path)](path)


def class_names(path: Path) -> Mapping[str, list[str]]:
    """Of the columns that hold numbers of classes, as parquet files of `datasets` have them.

    Raises:
        DataError: the file cannot be read.
    """
    if _ending(path) != ".parquet":
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    try:
        features = Features.from_arrow_schema(pq.read_schema(path))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}). Fetch or save it again.") from error
    return {c: f.names for c, f in features.items() if isinstance(f, ClassLabel)}


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _parquet_rows(path: Path) -> Rows:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def _csv_rows(path: Path) -> Rows:
    csv.field_size_limit(2**31 - 1)  # by default a field has at most 128 KiB
    with _opened(path, newline="") as file:
        yield from csv.DictReader(file)


def _json_rows(path: Path) -> Rows:
    """A list of objects, or one object a line."""
    with _opened(path) as file:
        is_list = file.read(1) == "["
        file.seek(0)
        yield from json.load(file) if is_list else map(json.loads, filter(str.strip, file))


def _txt_rows(path: Path) -> Rows:
    """Plain text: blank lines separate documents."""
    with _opened(path) as file:
        for blank, lines in groupby(file, str.isspace):
            if not blank:
                yield {"text": "".join(lines).strip()}


def _opened(path: Path, newline: str | None = None):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)  # some begin with a mark


READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".csv": _csv_rows,
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".parquet": _parquet_rows,
    ".txt": _txt_rows,
}
