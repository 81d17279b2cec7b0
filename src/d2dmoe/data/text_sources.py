"""Texts as they are published, all brought to one form: rows with a text and perhaps a class.

Rows are read one after the other, so that a source of any size can be read in part. Hugging Face
sets are kept in that library's own cache; files are read where they lie. Local names are relative
to the repository root.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from d2dmoe.config.data import CorpusConfig, TextsConfig
from d2dmoe.config.sources import check_texts, find_text_files
from d2dmoe.data.text_files import Rows, class_names, read_rows
from d2dmoe.data.vendored import vendored_file
from d2dmoe.errors import DataError


@dataclass(frozen=True)
class Table:
    """One published split; `rows` reads it from its beginning, each row by column names."""

    where: str  # source and split, for messages
    rows: Callable[[], Rows]
    classes: Mapping[str, list[str]]  # names of the columns that hold their numbers

    def texts(self, cfg: TextsConfig | CorpusConfig) -> Iterator[str]:
        """The texts, in stored order.

        Raises:
            DataError: there is no such column, or a text is empty.
        """
        for number, row in enumerate(self._rows()):
            yield self._text(number, row, cfg.text)

    def labelled(self, cfg: TextsConfig) -> Iterator[tuple[str, str | None]]:
        """The texts and their classes, in stored order; None for a class that is withheld.

        Raises:
            DataError: there are no such columns, a text is empty, or a label is no class.
        """
        for number, row in enumerate(self._rows()):
            yield self._text(number, row, cfg.text), self._class(number, row, cfg.label)

    def _rows(self) -> Rows:
        try:
            yield from self.rows()
        except Exception as error:  # the readers raise a dozen unrelated types
            raise DataError(
                f"{self.where} cannot be read ({type(error).__name__}: {error}). Fetch or save it "
                "again; for a set of the hub, check the network."
            ) from error

    def _text(self, number: int, row: Mapping[str, Any], column: str) -> str:
        text = self._value("text", number, row, column)
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{self.where}: the text of row {number} (from 0) is of type "
                f"{type(text).__name__}. Set `text` to a column that holds texts."
            )
        if text and not _encodable(text):
            raise DataError(
                f"{self.where}: the text of row {number} (from 0) holds half a character (a lone "
                "surrogate). Remove or mend such rows."
            )
        if not text or text.isspace():
            raise DataError(
                f"{self.where}: the text of row {number} (from 0) is empty. Remove such rows from "
                "the source (of a set of the hub, save a copy and give its folder)."
            )
        return text

    def _class(self, number: int, row: Mapping[str, Any], column: str) -> str | None:
        label, names = self._value("label", number, row, column), self.classes.get(column)
        if label in (None, -1, "-1") or (isinstance(label, str) and not label.strip()):
            return None
        if names and isinstance(label, int) and 0 <= label < len(names):
            return names[label]
        if names or not isinstance(label, int | str):
            raise DataError(
                f"{self.where}: the label of row {number} (from 0) is {label!r}, which is no "
                "class. Set `label` to a column of class numbers or names."
            )
        return str(label)

    def _value(self, key: str, number: int, row: Mapping[str, Any], column: str) -> Any:
        if not isinstance(row, Mapping) or None in row:  # as csv calls what the header does not
            raise DataError(
                f"{self.where}: row {number} (from 0) is no row of named cells, or has more cells "
                "than the header. Quote texts that hold commas."
            )
        if column not in row:
            raise DataError(
                f"{self.where}: there is no column '{column}'; the columns are "
                f"{', '.join(map(str, row))}. Set `{key}` to one of them."
            )
        return row[column]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_tables(cfg: TextsConfig | CorpusConfig, root: Path) -> dict[str, Table]:
    """The splits of `cfg.source` by name; `root` is the repository root.

    Raises:
        DataError: the source is missing, damaged or cannot be fetched, or has no split train.
    """
    holds_out_test = cfg.kind == "corpus" and cfg.test is not None
    check_texts(cfg.source, root, holds_out_test)
    kind, _, name = cfg.source.partition(":")
    if kind == "hub":
        tables = _hub(cfg, name, root)
    elif kind == "path":
        tables = _files(cfg.source, find_text_files(root / name))
    else:
        parts = ("train", "test")
        tables = _files(cfg.source, {p: vendored_file(name, f"{p}.parquet", root) for p in parts})
    if "train" not in tables:
        raise DataError(f"{cfg.source}: there is no split train among {', '.join(tables)}.")
    return tables


def _hub(cfg: TextsConfig | CorpusConfig, name: str, root: Path) -> dict[str, Table]:
    from datasets import ClassLabel, load_dataset

    name, _, revision = name.partition("@")
    try:
        splits = load_dataset(
            str(root / name) if (root / name).is_dir() else name,
            cfg.subset,
            revision=revision or None,
            streaming=cfg.kind == "corpus" and cfg.streaming,
        )
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise DataError(
            f"{cfg.source}: the dataset cannot be loaded ({type(error).__name__}: {error}). Check "
            "the name, `subset`, the network and, for a gated set, `hf auth login`; or fetch it "
            "elsewhere and give its folder as hub:FOLDER."
        ) from error
    return {
        split: Table(
            f"{cfg.source}, split {split}",
            partial(iter, rows),
            {
                column: feature.names
                for column, feature in (rows.features or {}).items()
                if isinstance(feature, ClassLabel)
            },
        )
        for split, rows in splits.items()
    }


def _files(source: str, paths: Mapping[str, Path]) -> dict[str, Table]:
    return {split: _file(f"{source}, {path.name}", path) for split, path in paths.items()}


def _file(where: str, path: Path) -> Table:
    try:
        return Table(where, partial(read_rows, path), class_names(path))
    except DataError as error:
        raise DataError(f"{where} cannot be read: {error}") from error
