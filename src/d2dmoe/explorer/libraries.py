"""The JavaScript libraries that the page draws with: as published, and checked each time.

Observable Plot makes charts of plain data, in SVG, and needs D3. Both come whole with the project,
so that the page needs no network. A new version is a new file, version and digest.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from d2dmoe.errors import DataError

FOLDER = Path(__file__).parent / "web/vendor"


@dataclass(frozen=True)
class Library:
    """A library in one file; its licence lies beside it."""

    name: str  # of its npm package
    version: str
    file: str
    licence: str
    sha256: str  # of the file


LIBRARIES = (  # each after those that it needs
    Library(
        "d3",
        "7.9.2",
        "d3.min.js",
        "d3.LICENSE",
        "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1",
    ),
    Library(
        "@observablehq/plot",
        "0.6.17",
        "plot.umd.min.js",
        "plot.LICENSE",
        "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
    ),
)


def code(library: Library, folder: Path = FOLDER) -> str:
    """A library's text, its licence first.

    Raises:
        DataError: the file is not the published one.
    """
    path = folder / library.file
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != library.sha256:
        raise DataError(
            f"{path} is not {library.name} {library.version} as it was published: its SHA-256 is "
            f"{found}, and should be {library.sha256}. Restore it: git checkout -- {path}"
        )
    licence = (folder / library.licence).read_text(encoding="utf-8")
    return f"/* {library.name} {library.version}\n{licence}*/\n{path.read_text(encoding='utf-8')}"
