"""Digest of the code that a script depends on, so that an edit reruns the stages that import it.

The workflow manager sees a script but none of the modules that it imports. Comments, docstrings and
formatting do not count: what is hashed is the syntax tree without them.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "d2dmoe"


def code_digest(script: Path, src: Path) -> str:
    """Hash of a script and of all the package's modules that it imports, directly or not.

    Args:
        script: the Python file.
        src: the folder that holds the package's folder.

    Raises:
        FileNotFoundError: the script does not exist.
    """
    hashed = [_hash(path) for path in sorted({script, *imported_modules(script, src)})]
    return hashlib.sha256("".join(hashed).encode()).hexdigest()[:16]


def imported_modules(script: Path, src: Path) -> set[Path]:
    """Files of the package's modules that a script imports, directly or not."""
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        for path in _imports(waiting.pop(), src):
            if path not in found:
                found.add(path)
                waiting.append(path)
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path, src: Path) -> frozenset[Path]:
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = (name for name in names if name.split(".")[0] == PACKAGE)
    return frozenset(file for name in ours for file in _files(name, src))


def _files(name: str, src: Path) -> list[Path]:
    """The files that importing a dotted name executes: the module and its packages' __init__."""
    parts = name.split(".")
    files = []
    for end in range(1, len(parts) + 1):
        base = src.joinpath(*parts[:end])
        files += [f for f in (base / "__init__.py", base.with_suffix(".py")) if f.is_file()]
    return files


@cache
def _hash(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
