"""Digest of the code that a job depends on, so that an edit repeats the jobs that use it alone.

The workflow manager sees a script but none of the modules behind it. A job depends on its script,
on the modules that its records name, and on all that these import, directly or not. Comments,
docstrings and formatting do not count: what is hashed is the syntax tree without them.

Packages' `__init__` files count where something is imported from them, not where a module inside
of them is: they hold tables, and a table's other records change nothing.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = "d2dmoe"


def code_digest(script: Path, src: Path, modules: Iterable[str] = ()) -> str:
    """Hash of a script, of further modules, and of all that these import of the package.

    Args:
        script: the Python file.
        src: the folder that holds the package's folder.
        modules: dotted names, of the package or of extensions.

    Raises:
        FileNotFoundError: the script does not exist.
    """
    return _digest_of(script, src, tuple(modules))


@cache
def _digest_of(script: Path, src: Path, modules: tuple[str, ...]) -> str:
    files = sorted({script, *imported_modules(script, src, modules)})
    hashed = "".join(_read(path).digest for path in files)
    return hashlib.sha256(hashed.encode()).hexdigest()[:16]


def imported_modules(script: Path, src: Path, modules: Iterable[str] = ()) -> set[Path]:
    """Files of the modules that a script and further modules import, directly or not, and of these
    modules."""
    waiting = [script, *(file_of(name, src) for name in modules)]
    found = set(waiting[1:])
    while waiting:
        for path in _imports(waiting.pop(), src):
            if path not in found:
                found.add(path)
                waiting.append(path)
    return found


@cache
def file_of(name: str, src: Path) -> Path:
    """The file of a module of the package, or of one that Python finds elsewhere.

    Raises:
        ModuleNotFoundError: there is none.
    """
    if own := _own_file(name, src):
        return own
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"there is no module {name}")
    return Path(spec.origin)


class _Module(NamedTuple):
    """What a file says."""

    digest: str
    imported: tuple[tuple[str, str | None], ...]  # modules, and what is taken from them


@cache
def _read(path: Path) -> _Module:
    """Parse a file; once, since planning does it for every module of the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: list[tuple[str, str | None]] = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
        if isinstance(node, ast.Import):
            imported += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imported += [(node.module, alias.name) for alias in node.names]
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    ours = (pair for pair in imported if pair[0].split(".")[0] == PACKAGE)
    return _Module(digest, tuple(ours))


@cache
def _imports(path: Path, src: Path) -> frozenset[Path]:
    """The package's files that a file's import statements name."""
    found: set[Path | None] = set()
    for module, name in _read(path).imported:  # a module of a package, or what a module holds
        inner = _own_file(f"{module}.{name}", src) if name else None
        found.add(inner or _own_file(module, src))
    return frozenset(file for file in found if file)


@cache
def _own_file(name: str, src: Path) -> Path | None:
    if name.split(".")[0] != PACKAGE:
        return None
    base = src.joinpath(*name.split("."))
    files = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
