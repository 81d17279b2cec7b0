"""What commands print: results to stdout, as text or one JSON object; all else to stderr."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm


def say(text: str) -> None:
    """A line about what goes on."""
    typer.echo(text, err=True)


def report(result: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print what a command came to: `text`, or else `result` as JSON."""
    typer.echo(json.dumps(plain(result), allow_nan=False) if as_json else text.rstrip())


def plain(value: Any) -> Any:
    """As JSON has it: records as objects, paths as texts, numbers that are none as null."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a tensor's or an array's numbers
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts below their headers; the first column is flush left, the others right."""
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console = Console(width=200, no_color=True, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(drawn)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(line for line in lines if line)


def interval(value: float, between: tuple[float, float] | None) -> str:
    """A mean and, in brackets, its 95 % interval, where it has one."""
    around = "" if between is None else f" [{between[0]:.4f}, {between[1]:.4f}]"
    return f"{value:.4f}{around}"


class Shown:
    """Batches that show on stderr, at a terminal, how far they have been read."""

    def __init__(self, batches: Sequence[Any], what: str, steps: int | None = None):
        """`steps` is how many batches will be read in all, if not each once."""
        self.batches, self.what, self.steps = batches, what, steps
        self.bar: tqdm | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.bar is None:
                total = self.steps or len(self.batches)
                self.bar = tqdm(total=total, desc=self.what, disable=None, leave=False)
            self.bar.update()
            if self.bar.n >= self.bar.total:
                self.bar.close()
                self.bar = None
            yield batch
