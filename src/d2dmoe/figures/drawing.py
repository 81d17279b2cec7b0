"""A figure from files to files."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2dmoe.figures.style import save
from d2dmoe.io.read import read
from d2dmoe.lookup import resolve
from d2dmoe.tables import COLUMNS


def draw_files(
    draw: str, inputs: Mapping[str, Path], arguments: Mapping[str, Any], png: Path, pdf: Path
) -> None:
    """Draw a figure of the files that it reads, by their names, and save it twice.

    Args:
        draw: the reference of its function; see `figures.Figure`.
        inputs: files, by the names of the function's arguments.
        arguments: its plain arguments.
        png, pdf: where it is saved.

    Raises:
        DataError: a file is missing or damaged.
        UserError: the figure cannot be drawn of them.
    """
    tables = {name: read(path, COLUMNS.get(name, ())) for name, path in inputs.items()}
    save(resolve(draw)(**tables, **arguments), png, pdf)


@contextmanager
def drawing_files(processes: int) -> Iterator[Callable[..., None]]:
    """A function that takes what `draw_files` takes, and has some processes draw it meanwhile.

    Raises:
        DataError, UserError: as `draw_files` does, at the end, of the first figure that fails.
    """
    with ProcessPoolExecutor(processes) as pool:
        drawn: list[Future[None]] = []

        def draw(*arguments: Any) -> None:
            drawn.append(pool.submit(draw_files, *arguments))

        yield draw
        for figure in drawn:
            figure.result()
