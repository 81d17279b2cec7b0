"""Digest of the code that a job depends on, so that an edit repeats the jobs that use it alone.

The workflow manager sees a script but none of the modules behind it. A job depends on its script,
on the modules that its records name, and on all that these import, directly or not. Comments,
docstrings and formatting do not count: what is hashed is the syntax tree without them.

A table, `NAME = table_of(…)`, does not count where a job says which records it uses: these are
hashed instead, so that a new record repeats nothing. Packages' `__init__` files count where
something is imported from them, not where a module inside of them is.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from d2dmoe.lookup import module_of, table_of

PACKAGE = "d2dmoe"
INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")  # where libraries lie


@dataclass(frozen=True)
class Use:
    """A record that a job uses, and the references of it that the job follows."""

    record: Any
    references: tuple[str, ...] = ()  # names of its fields

    @property
    def modules(self) -> list[str]:
        """The modules behind the references."""
        followed = (getattr(self.record, name) for name in self.references)
        return [module_of(reference) for reference in followed if reference]

    @property
    def text(self) -> str:
        """All that the record says, but for the tables that it points to."""
        values = {f.name: getattr(self.record, f.name) for f in fields(self.record)}
        return repr({k: v for k, v in values.items() if not isinstance(v, Mapping) or not v})


def code_digest(script: Path, src: Path, uses: Iterable[Use] | None = None) -> str:
    """Hash of a script, of the records that it uses and the modules behind them, and of all that
    these import.

    Args:
        script: the Python file.
        src: the folder that holds the package's folder.
        uses: None: the script reads tables as a whole.

    Raises:
        FileNotFoundError: the script does not exist.
    """
    if uses is None:
        return _digest_of(script, src, (), None)
    uses = list(uses)
    modules = tuple(sorted({name for use in uses for name in use.modules}))
    return _digest_of(script, src, modules, tuple(sorted({use.text for use in uses})))


@cache
def _digest_of(
    script: Path, src: Path, modules: tuple[str, ...], records: tuple[str, ...] | None
) -> str:
    files = sorted({script, *imported_modules(script, src, modules)})
    if records is None:
        hashed = [_read(path).whole for path in files]
    else:
        hashed = [*records, *(_read(path).without_tables for path in files)]
    return hashlib.sha256("".join(hashed).encode()).hexdigest()[:16]


def imported_modules(script: Path, src: Path, modules: Iterable[str] = ()) -> set[Path]:
    """Files of the modules that a script and further modules import, directly or not, and of these
    modules; libraries are left out, their versions are the environment's."""
    named = (file_of(name, src) for name in modules)
    waiting = [script, *(path for path in named if path)]
    found = set(waiting[1:])
    while waiting:
        for path in _imports(waiting.pop(), src):
            if path not in found:
                found.add(path)
                waiting.append(path)
    return found


@cache
def file_of(name: str, src: Path) -> Path | None:
    """The file of a module of the package or of an extension; None for a library's.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    if own := _own_file(name, src):
        return own
    top = name.split(".")[0]
    if _is_library(find_spec(top), top):  # before all of the name, which would import its packages
        return None
    spec = find_spec(name)
    return Path(spec.origin) if spec and spec.origin else None


def _is_library(spec: ModuleSpec | None, name: str) -> bool:
    if spec is None:
        raise ModuleNotFoundError(f"there is no module {name}")
    origin = spec.origin or next(iter(spec.submodule_search_locations or ()), "built-in")
    if origin in ("built-in", "frozen") or origin.endswith((".so", ".pyd")):
        return True
    return any(Path(origin).is_relative_to(sysconfig.get_path(kind)) for kind in INSTALLED)


class _Module(NamedTuple):
    """What a file says."""

    whole: str  # digests
    without_tables: str
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
    whole = _hash(tree)
    tables = [s for s in tree.body if _is_table(s)]
    tree.body = [s for s in tree.body if s not in tables]
    return _Module(whole, _hash(tree) if tables else whole, tuple(imported))


def _hash(tree: ast.AST) -> str:
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_table(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    function = value.func if isinstance(value, ast.Call) else None
    return isinstance(function, ast.Name) and function.id == table_of.__name__


@cache
def _imports(path: Path, src: Path) -> frozenset[Path]:
    """The files that a file's import statements name: the package's, and for a file of an extension
    also those beside it."""
    found: set[Path | None] = set()
    for module, name in _read(path).imported:  # a module of a package, or what a module holds
        inner = f"{module}.{name}" if name else module
        found.add(_own_file(inner, src) or _own_file(module, src))
        if module.split(".")[0] != PACKAGE and not path.is_relative_to(src):
            found.add(_file(inner, path.parent) or _file(module, path.parent))
    return frozenset(file for file in found if file)


@cache
def _own_file(name: str, src: Path) -> Path | None:
    return _file(name, src) if name.split(".")[0] == PACKAGE else None


def _file(name: str, folder: Path) -> Path | None:
    base = folder.joinpath(*name.split("."))
    files = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
