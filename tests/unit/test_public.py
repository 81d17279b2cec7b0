"""The public names: each is there, typed and documented, and costs nothing until it is used."""

import ast
import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import d2dmoe


def is_there(name: str) -> bool:
    """Whether the module behind a name is part of this installation."""
    module = d2dmoe.PUBLIC[name].partition(":")[0]
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


HERE = [name for name in d2dmoe.PUBLIC if is_there(name)]


@pytest.mark.parametrize("name", HERE)
def test_a_public_name_is_a_documented_function_or_class_of_that_name(name):
    found = getattr(d2dmoe, name)
    assert callable(found) and found.__name__ == name and inspect.getdoc(found)
    assert found is getattr(d2dmoe, name)
    annotated = found.__init__ if inspect.isclass(found) else found
    for parameter in list(inspect.signature(found).parameters.values()):
        assert parameter.annotation is not parameter.empty, f"{annotated}: {parameter}"


def test_type_checkers_see_the_public_names():
    tree = ast.parse(Path(d2dmoe.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: d2dmoe.PUBLIC[name] for name in HERE}


def test_public_names_are_listed_and_are_no_submodules():
    """A submodule would take the name's place as soon as anything imports it."""
    assert {*d2dmoe.PUBLIC} <= {*d2dmoe.__all__} & {*dir(d2dmoe)}
    folder = Path(d2dmoe.__file__).parent
    assert not {*d2dmoe.PUBLIC} & {path.stem for path in folder.iterdir()}


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'd2dmoe' has no attribute 'converts'"):
        d2dmoe.converts  # noqa: B018
    assert not hasattr(d2dmoe, "__wrapped__")


def test_importing_the_package_imports_nothing_large():
    code = (
        "import sys, d2dmoe; dir(d2dmoe); "
        "sys.exit(str({'torch', 'transformers', 'numpy', 'pydantic'} & {*sys.modules} or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stderr.strip() == ""
