"""A person's own data: rows of a text file or images of a folder, split once by a seed."""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from d2dmoe.config.sources import TEST_NAMES, TEXT_FILE, find_text_files
from d2dmoe.data.text_files import class_names, read_rows
from d2dmoe.errors import DataError

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
HELD_OUT = 0.1  # of the samples, for validation, and as many for the test
SplitName = Literal["train", "validation", "test"]


class Row(NamedTuple):
    """A sample: a text or an image's file, and what belongs to it."""

    content: str | Path
    label: str | None  # a class, or the text that is to be written


@dataclass(frozen=True)
class Data:
    """Where the data are, and how they are read."""

    path: Path
    text: str = "text"
    label: str | None = None  # the column of classes, or of texts to be written
    samples: int | None = None  # at most so many of a split
    seed: int = 0

    def split(self, name: SplitName) -> list[Row]:
        """The rows of a split, in an order that the seed decides.

        Splits that the data bring along are kept. Else a tenth of the samples is for validation and
        a tenth for the test; equal ones stay together, so that none is seen in training and tested.

        Raises:
            DataError: the data are missing, damaged, or too few.
        """
        given = self._given()
        rows = given[name] if name in given and name != "train" else self._cut(name, given)
        if not rows:
            found = sum(map(len, given.values()))
            txt = " In a txt file blank lines part the texts." if ".txt" in self.path.name else ""
            raise DataError(
                f"{self.path}: {found} samples are too few to have any for {name}. Give more.{txt}"
            )
        return rows[: self.samples]

    def _given(self) -> dict[str, list[Row]]:
        """The splits that the data bring along, shuffled; one file or tree is all training."""
        if not self.path.exists():
            raise DataError(f"--data {self.path}: there is no such file or folder.")
        if self.path.is_file():
            return {"train": self._shuffled(self._texts(self.path))}
        files = find_text_files(self.path)
        trees = {p.name: p for p in sorted(self.path.iterdir()) if p.is_dir()}
        if "train" in files:
            return _named({n: self._shuffled(self._texts(f)) for n, f in files.items()})
        if "train" in trees:
            given = {n: t for n, t in trees.items() if n in ("train", *TEST_NAMES)}
            return _named({n: self._shuffled(_images(tree)) for n, tree in given.items()})
        return {"train": self._shuffled(_images(self.path))}

    def _shuffled(self, rows: Iterable[Row]) -> list[Row]:
        """Equal contents next to each other."""
        groups: dict[str | Path, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.content, []).append(row)
        order = list(groups)
        random.Random(self.seed).shuffle(order)
        return [row for content in order for row in groups[content]]

    def _cut(self, name: str, given: Mapping[str, list[Row]]) -> list[Row]:
        """A share of the training rows: a split that the data do not bring along, or what such
        splits leave."""
        rows, start = given["train"], 0
        for held_out in ("validation", "test"):
            if held_out in given:
                continue
            end = _next_group(rows, start + max(1, round(HELD_OUT * len(rows))))
            if held_out == name:
                return rows[start:end]
            start = end
        return rows[start:]

    def _texts(self, path: Path) -> Iterator[Row]:
        if not TEXT_FILE.fullmatch(path.name):
            raise DataError(
                f"--data {path}: its ending says no known kind. Allowed: .csv, .json, .jsonl, "
                ".parquet and .txt, or a folder of images."
            )
        names = class_names(path)
        for number, cells in enumerate(_cells(path)):
            where = f"{path}, row {number} (from 0)"
            if self.label is None:
                yield Row(_text(where, cells, self.text, "--text-column"), None)
                continue
            label = _label(where, cells, self.label, names)
            yield Row(_text(where, cells, self.text, "--text-column"), label)


def _named(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """By this package's names; where there is one split beside training, it is the test."""
    named = {"validation" if name == "val" else name: rows for name, rows in splits.items()}
    if "test" not in named and "validation" in named:
        named["test"] = named.pop("validation")
    return named


def _next_group(rows: list[Row], index: int) -> int:
    """The next index at which a row begins that is another than the one before."""
    while 0 < index < len(rows) and rows[index].content == rows[index - 1].content:
        index += 1
    return index


def _cells(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file, each with the same cells."""
    try:
        yield from read_rows(path)
    except DataError:
        raise
    except Exception as error:  # the readers raise a dozen unrelated types
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Save it again, as UTF-8."
        ) from error


def _cell(where: str, cells: Mapping[str, Any], column: str, option: str) -> Any:
    if not isinstance(cells, Mapping) or None in cells:  # as csv calls what the header does not
        raise DataError(
            f"{where} is no row of named cells, or has more cells than the header. Quote texts "
            "that hold commas."
        )
    if column not in cells:
        raise DataError(
            f"{where} has no column '{column}'; its columns are {', '.join(map(str, cells))}. "
            f"Choose one with {option}."
        )
    return cells[column]


def _text(where: str, cells: Mapping[str, Any], column: str, option: str) -> str:
    text = _cell(where, cells, column, option)
    if not isinstance(text, str) or not text.strip():
        found = "is empty" if text in (None, "") or isinstance(text, str) else f"holds {text!r:.60}"
        raise DataError(
            f"{where}: the column '{column}' {found}, where a text is needed. Mend or remove the "
            f"row, or choose another column with {option}."
        )
    if text.encode(errors="replace").decode() != text:
        raise DataError(
            f"{where} holds half a character (a lone surrogate). Mend or remove the row."
        )
    return text


def _label(where: str, cells: Mapping[str, Any], column: str, names: Mapping) -> str:
    option = "--label-column"
    label = _cell(where, cells, column, option)
    if column in names and isinstance(label, int) and 0 <= label < len(names[column]):
        return names[column][label]
    if not isinstance(label, int | str) or not str(label).strip():
        raise DataError(
            f"{where}: the column '{column}' holds no label. Mend or remove the row, or choose "
            f"another column with {option}."
        )
    return str(label)


def _images(folder: Path) -> list[Row]:
    """The images of a folder, or of a folder for each class."""
    if not folder.is_dir():
        raise DataError(f"--data {folder}: there is no such folder.")
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    rows = [Row(file, tree.name) for tree in classes for file in _image_files(tree)]
    rows = rows or [Row(file, None) for file in _image_files(folder)]
    if not rows:
        raise DataError(
            f"--data {folder} holds no images ({', '.join(IMAGES)}) and no train.csv, train.jsonl, "
            "train.json, train.parquet or train.txt."
        )
    return rows


def _image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGES and f.is_file())
