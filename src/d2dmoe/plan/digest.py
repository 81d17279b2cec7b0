"""Digest of the code that a job depends on, so that an edit repeats the jobs that use it alone.

The workflow manager sees a script but none of the modules behind it. A job depends on its script,
on the modules that its records name, and on all that these import, directly or not. Comments,
docstrings and formatting do not count: what is hashed is the syntax tree without them.

The project's tables, `NAME = table_of(…)`, do not count where a job says which records it uses:
these are hashed instead, so that a new record repeats nothing. Packages' `__init__` files count
where something is imported from them, not where a module inside of them is.
"""

import ast
import atexit
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from d2dmoe.errors import UserError
from d2dmoe.io.files import write_atomically
from d2dmoe.lookup import module_of, table_of

PACKAGE = "d2dmoe"
TABLES = (  # the modules whose records jobs say that they use
    "activations",
    "claims",
    "figures",
    "methods",
    "models",
    "router_kinds",
    "selection_rules",
    "stages",
)
PYTHON = ("stdlib", "platstdlib")  # where its own modules lie
INSTALLED = {"site-packages", "dist-packages"}  # folders of libraries


@dataclass(frozen=True)
class Use:
    """A record that a job uses, and the references of it that the job follows."""

    record: Any
    references: tuple[str, ...] = ()  # names of fields; a record may lack some

    @property
    def modules(self) -> list[str]:
        """The modules behind the references."""
        followed = (getattr(self.record, name, None) for name in self.references)
        return [module_of(reference) for reference in followed if reference]

    @property
    def text(self) -> str:
        """All that the record says, but for the records of the tables that it points to."""
        return repr({f.name: _said(getattr(self.record, f.name)) for f in fields(self.record)})


def _said(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _said(inner) for name, inner in value.items() if not is_dataclass(inner)}
    return sorted(value) if isinstance(value, Set) else value  # whose order differs by process


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
    files = sorted({script, *imported_modules(script, src, modules)}, key=str)
    if records is None:
        hashed = [_read(path).whole for path in files]
    else:
        tables = {_own_file(f"{PACKAGE}.{name}", src) for name in TABLES}
        read = ((path, _read(path)) for path in files)
        hashed = [x.without_records if path in tables else x.whole for path, x in read]
        hashed = [*records, *hashed]
    return hashlib.sha256("".join(hashed).encode()).hexdigest()[:16]


def imported_modules(script: Path, src: Path, modules: Iterable[str] = ()) -> set[Path]:
    """Files of the modules that a script and further modules import, directly or not, and of these
    modules; libraries are left out, their versions are the environment's."""
    named = {path for path in (file_of(name, src) for name in modules) if path}
    return named.union(*(_reached(path, src) for path in (script, *named)))


@cache
def _reached(path: Path, src: Path) -> frozenset[Path]:
    """The files that a file imports, directly or not."""
    waiting, found = [path], set[Path]()
    while waiting:
        new = _imports(waiting.pop(), src) - found
        found |= new
        waiting += new
    return frozenset(found)


@cache
def file_of(name: str, src: Path) -> Path | None:
    """The file of a module of the package or of an extension; None for a library's, and for a
    compiled one.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    top = name.split(".")[0]
    if top == PACKAGE:
        if own := _own_file(name, src):
            return own
        raise ModuleNotFoundError(f"there is no module {name} in {src}")
    if _is_library(_spec_of(top)):  # before all of the name, which would import its packages
        return None
    origin = _spec_of(name).origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _spec_of(name: str) -> ModuleSpec:
    spec = find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"there is no module {name}")
    return spec


def _is_library(spec: ModuleSpec) -> bool:
    origin = spec.origin or next(iter(spec.submodule_search_locations or ()), "built-in")
    if origin in ("built-in", "frozen") or not INSTALLED.isdisjoint(Path(origin).parts):
        return True
    return any(Path(origin).is_relative_to(sysconfig.get_path(kind)) for kind in PYTHON)


class _Module(NamedTuple):
    """What a file says."""

    whole: str  # digests
    without_records: str  # and tables
    imported: tuple[tuple[str, str | None], ...]  # modules, and what is taken from them


@cache
def _read(path: Path) -> _Module:
    """What a file says; once, since planning asks it of every module of the package."""
    text = path.read_text(encoding="utf-8")
    return KEPT.get(path, text) or KEPT.keep(path, text, _parse(path, text))


class _Kept:
    """What files said to earlier processes, by hashes of their texts: to parse them all takes
    seconds."""

    def __init__(self) -> None:
        self.before: dict[str, list] = {}
        self.now: dict[str, _Module] = {}

    def use(self, file: Path) -> None:
        """Read the file now, and write it when this process ends if there was anything new."""
        self.before = {}
        with suppress(OSError, ValueError):  # the first call, or no text
            digest, _, told = file.read_text(encoding="utf-8").partition("\n")
            if digest == _hash_of(told):  # not damaged
                self.before = json.loads(told)
        atexit.register(self.write, file)

    def get(self, path: Path, text: str) -> _Module | None:
        key = self._key(path, text)
        if key in self.before:
            whole, without_records, imported = self.before[key]
            self.now[key] = _Module(whole, without_records, tuple((x, y) for x, y in imported))
        return self.now.get(key)

    def keep(self, path: Path, text: str, module: _Module) -> _Module:
        self.now[self._key(path, text)] = module
        return module

    @staticmethod
    def _key(path: Path, text: str) -> str:
        """Of the text, of where relative imports lead to, and of what parses it."""
        said = (path.parent.relative_to(_home(path)).as_posix(), text, sys.version, _this_text())
        return _hash_of("\0".join(said))

    def write(self, file: Path) -> None:
        if self.now.keys() <= self.before.keys() or not file.parent.is_dir():
            return
        told = json.dumps(self.now)
        text = f"{_hash_of(told)}\n{told}"
        with suppress(UserError):  # of a project that may only be read
            write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))


KEPT = _Kept()


@cache
def _this_text() -> str:
    return Path(__file__).read_text(encoding="utf-8")


def _parse(path: Path, text: str) -> _Module:
    tree = ast.parse(text)
    imported: list[tuple[str, str | None]] = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
        if isinstance(node, ast.Import):
            imported += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            imported += [(module, alias.name) for alias in node.names]
    whole = _hash(tree)
    makers = {table_of.__name__, *(s.name for s in tree.body if isinstance(s, ast.ClassDef))}
    others = [s for s in tree.body if _called(s) not in makers]
    if others == tree.body:
        return _Module(whole, whole, tuple(imported))
    tree.body = others
    return _Module(whole, _hash(tree), tuple(imported))


def _hash(tree: ast.AST) -> str:
    return _hash_of(ast.dump(tree))


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _called(statement: ast.stmt) -> str | None:
    """The name of the function or class whose call the statement names or is."""
    value = getattr(statement, "value", None)
    function = value.func if isinstance(value, ast.Call) else None
    return function.id if isinstance(function, ast.Name) else None


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that a file imports from."""
    if not node.level:
        return node.module or ""
    package = path.parent.relative_to(_home(path)).parts
    outer = package[: len(package) + 1 - node.level]
    return ".".join([*outer, *([node.module] if node.module else [])])


def _home(path: Path) -> Path:
    """The folder in which Python finds a file's module, or the package that it belongs to."""
    return next(x for x in path.parents if not (x / "__init__.py").is_file())


@cache
def _imports(path: Path, src: Path) -> frozenset[Path]:
    """The files that a file's import statements name: the package's, and for a file of an extension
    also those beside it."""
    found: set[Path | None] = set()
    folder = None if path.is_relative_to(src / PACKAGE) else _home(path)
    for module, name in _read(path).imported:  # a module of a package, or what a module holds
        inner = f"{module}.{name}" if name else module
        found.add(_own_file(inner, src) or _own_file(module, src))
        if folder and module.split(".")[0] != PACKAGE:
            found.add(_file(inner, folder) or _file(module, folder))
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
