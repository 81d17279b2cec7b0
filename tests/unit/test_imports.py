"""Laws of the import graph: arrows point down, from room to room in one order, and in no circle.

Import statements count wherever they stand, in functions too; those for types alone do not. What
records name as text is no arrow: a record knows where its code is, and imports none of it.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

ROOMS = {  # from the lowest; a module belongs to the room of its longest pattern
    "foundations": ["d2dmoe", "errors", "lookup", "seeding", "extensions", "registration"],
    "tables of records": ["activations", "router_kinds", "selection_rules"]
    + ["stages", "methods", "models", "figures", "claims"],
    "several processes": ["processes"],
    "files": ["io", "io.*"],
    "options": ["config", "config.*", "methods.*.options"],
    "jobs": ["jobs", "jobs.*"],
    "the report": ["page"],
    "data": ["data", "data.*"],
    "tables of results": ["tables", "curve", "bootstrap", "profiles", "significance"]
    + ["fairness", "neighbours", "text_references"],
    "modules": ["inputs", "surgery", "padding", "pooling", "stand_ins"],
    "the paper": ["ffn", "sparsity", "activity", "attention", "balanced_kmeans", "experts"]
    + ["weights", "router", "selection", "backend", "moe", "formulas", "flops"],
    "architectures": ["models.*"],
    "saved models": ["spec", "checkpoint", "conversion", "layers"],
    "transformers": ["huggingface", "huggingface.*"],
    "quality": ["quality", "sensitivity"],
    "training": ["optimizer", "distributed", "graphed", "training"],
    "the clock": ["timing"],
    "kernels": ["kernels", "kernels.*"],
    "evaluation": ["evaluation", "downstream"],
    "finding FFNs": ["discovery", "discovery.*"],
    "the library": ["api", "api.*"],
    "host memory": ["offloading", "offloading.*"],
    "compression": ["compression", "compression.*"],
    "stages": ["stages.*"],
    "methods": ["methods.*"],
    "benchmarks": ["benchmark", "benchmark.*"],
    "figures": ["figures.*"],
    "claims": ["claims.*"],
    "the explorer": ["explorer", "explorer.*"],
    "plan": ["plan", "plan.*", "methods.checks", "methods.*.plan"],
    "the command line": ["cli", "cli.*", "__main__"],
}
NONE = "no room"
ORDER = {room: place for place, room in enumerate([*ROOMS, NONE])}


def name_of(path: Path) -> str:
    """A module's name below the package; a package has that of its folder."""
    parts = path.relative_to(SRC / "d2dmoe").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "d2dmoe"


MODULES = {name_of(path): path for path in sorted((SRC / "d2dmoe").rglob("*.py"))}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, but for those that run for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_for_types(child):
            for other in child.orelse:
                yield other
                yield from statements(other)
        else:
            yield child
            yield from statements(child)


def imports_of(source: str) -> set[str]:
    """The package's modules that a text imports; a package where something is taken from it."""
    found = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("d2dmoe.")
                found.add(inner if inner in MODULES else node.module)
    return {name.removeprefix("d2dmoe.") for name in found} & MODULES.keys()


GRAPH = {name: imports_of(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """The room of the longest pattern that the module fits."""
    fits = [
        (len(pattern), room)
        for room, patterns in ROOMS.items()
        for pattern in patterns
        if fnmatchcase(module, pattern)
    ]
    return max(fits)[1] if fits else NONE


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from d2dmoe.lookup import resolve", {"lookup"}),
        ("from d2dmoe.plan import digest", {"plan.digest"}),
        ("from d2dmoe.figures import FIGURES, style", {"figures", "figures.style"}),
        ("import d2dmoe.io.files as files", {"io.files"}),
        ("def f():\n    from d2dmoe.moe import MoE", {"moe"}),
        ("try:\n    import d2dmoe.moe\nexcept ImportError:\n    import torch", {"moe"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import d2dmoe.moe", set()),
        ("import typing\nif typing.TYPE_CHECKING:\n    import d2dmoe.moe", set()),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import d2dmoe.moe", {"moe"}),
        ("import torch, json", set()),
        ("resolve('d2dmoe.moe:MoE')", set()),
    ],
)
def test_arrows_are_import_statements_that_are_run(source, found):
    assert imports_of(source) == found


def test_every_module_has_a_room_and_every_pattern_a_module():
    homeless = [name for name in MODULES if room_of(name) == NONE]
    assert not homeless, f"give a room to {homeless}"
    for room, patterns in ROOMS.items():
        for pattern in patterns:
            assert any(fnmatchcase(name, pattern) for name in MODULES), f"{room}: {pattern}"
        assert room in map(room_of, MODULES), room


def test_no_module_imports_itself_over_others():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(reversed(error.args[1]))}")


def test_no_arrow_points_to_a_higher_room():
    upward = [
        f"{name} ({room_of(name)}) -> {other} ({room_of(other)})"
        for name, found in GRAPH.items()
        for other in found
        if ORDER[room_of(other)] > ORDER[room_of(name)]
    ]
    assert not upward, "\n".join(upward)


def test_modules_are_imported_by_their_whole_names():
    """The arrows above are read from these alone."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}: {node.lineno}"


def test_scripts_are_imported_by_nothing_and_import_the_library_alone():
    for path in sorted((SRC.parent / "scripts").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module and not node.level, path
                assert node.module.split(".")[0] in ("d2dmoe", "pathlib"), path
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"pandas"}, path


def test_tables_of_records_import_nothing_but_tables_and_what_is_below():
    """Reading a table costs nothing: no torch, no numpy, no module that a record names."""
    for name in MODULES:
        if room_of(name) in ("foundations", "tables of records"):
            tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
            found = {
                (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
                for node in statements(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            assert not found & {"torch", "numpy", "pandas", "triton", "transformers"}, name
