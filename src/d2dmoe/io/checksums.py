"""Checksums of results: written by the job that made them, checked before another one reads them.

Beside `results/tables/claims.csv` lies `.claims.csv.sha256`, in the form of `sha256sum`: first the
file itself, then the files that it was made of, as they were then. Names are those that the
workflow uses, relative to its working directory, so that results may be moved as a whole.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from d2dmoe.errors import ResultError
from d2dmoe.io.files import sha256, write_atomically

RESULTS = "results"  # the folder of all that jobs make
PUBLISHED = ("results", "reference")  # what came with the project


def checksum_file(path: Path) -> Path:
    """Where the checksums of a result lie."""
    return path.with_name(f".{path.name}.sha256")


def name_of(path: Path) -> str:
    """A path as checksums name it: relative to the working directory where it lies inside."""
    name = os.path.relpath(path)
    return str(path) if name.startswith(os.pardir) else name


def write_checksums(path: Path, sources: Mapping[str, str]) -> None:
    """Write those of a result and of the files that it was made of, by their names.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    sums = {name_of(path): sha256(path)} | dict(sources)
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    write_atomically(checksum_file(path), lambda p: p.write_text(text, encoding="utf-8"))


def read_checksums(path: Path) -> dict[str, str]:
    """The SHA-256 of a result and of the files that it was made of, by their names, its own first.

    Raises:
        ResultError: there are none, or they are damaged.
    """
    beside = checksum_file(path)
    try:
        lines = beside.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ResultError(path, "foreign", "no job wrote its checksum beside it") from None
    except (OSError, ValueError) as error:
        raise ResultError(path, "damaged", f"its checksum {beside} is: {error}") from error
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if not sums:
        raise ResultError(path, "damaged", f"its checksum {beside} is empty")
    return sums


def check(path: Path) -> str:
    """The SHA-256 of a result that is as its job left it.

    Raises:
        ResultError: it is damaged, edited, or was made elsewhere.
    """
    name, expected = next(iter(read_checksums(path).items()))
    try:
        found = sha256(path)
    except OSError as error:
        raise ResultError(path, "damaged", f"it cannot be read ({error})") from error
    if found != expected:
        detail = "its content is not what its job wrote: bits flipped, or someone edited it"
        raise ResultError(path, "damaged", detail)
    if name != name_of(path):
        raise ResultError(path, "foreign", f"it was made as {name}")
    return found


def check_all(paths: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files by their names; results among them are as their jobs left them.

    Raises:
        ResultError: one is not.
    """
    sums = {}
    for path in map(Path, paths):
        name = name_of(path)
        parts = Path(name).parts
        made_here = parts[0] == RESULTS and parts[:2] != PUBLISHED
        sums[name] = check(path) if made_here else sha256(path)
    return sums
