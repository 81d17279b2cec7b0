"""Laws of the code digest: an edit changes the digests of just those jobs whose code it is."""

import ast
from pathlib import Path

import pytest

from d2dmoe.plan import digest
from d2dmoe.plan.digest import code_digest, file_of, imported_modules

SOURCES = {
    "src/d2dmoe/__init__.py": "VERSION = 1\n",
    "src/d2dmoe/base.py": '"""Base."""\nVALUE = 1\n',
    "src/d2dmoe/middle.py": "from d2dmoe.base import VALUE\n\ndef f():\n    return VALUE\n",
    "src/d2dmoe/alone.py": "import math\n\ndef g():\n    return math.pi\n",
    "src/d2dmoe/sub/__init__.py": "from d2dmoe.alone import g\nTABLE = [g]\n",
    "src/d2dmoe/sub/leaf.py": "def h():\n    import d2dmoe.base as base\n    return base.VALUE\n",
    "scripts/direct.py": "from d2dmoe.base import VALUE\nprint(VALUE)\n",
    "scripts/transitive.py": "from d2dmoe import middle\nprint(middle.f())\n",
    "scripts/lone.py": "import d2dmoe.alone\nprint(d2dmoe.alone.g())\n",
    "scripts/inside.py": "from d2dmoe.sub.leaf import h\nprint(h())\n",
    "scripts/module.py": "from d2dmoe.sub import leaf\nprint(leaf.h())\n",
    "scripts/table.py": "from d2dmoe.sub import TABLE\nprint(TABLE)\n",
    "scripts/whole.py": "import d2dmoe.sub\nprint(d2dmoe.sub.TABLE)\n",
    "scripts/version.py": "from d2dmoe import VERSION\nprint(VERSION)\n",
    "scripts/named.py": "print('imports nothing; its records name code')\n",
}
SCRIPTS = [name[8:-3] for name in SOURCES if name.startswith("scripts/")]
NAMED = {"named": ["d2dmoe.sub.leaf"]}  # by script: the modules that its records name
ROOT = Path(__file__).parents[2]


def forget() -> None:
    """What a new process would not know."""
    for function in vars(digest).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture(autouse=True)
def _forgetful():
    forget()
    yield
    forget()


def write(root: Path, sources: dict[str, str]) -> Path:
    for name, text in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def package(tmp_path) -> Path:
    return write(tmp_path, SOURCES)


def digests(root: Path) -> dict[str, str]:
    """Of every script, as a new process would see them."""
    forget()
    src = root / "src"
    return {x: code_digest(root / f"scripts/{x}.py", src, NAMED.get(x, ())) for x in SCRIPTS}


def changed(root: Path, file: str, text: str) -> set[str]:
    """The scripts whose digests change when `file` holds `text`."""
    before = digests(root)
    (root / file).write_text(text)
    after = digests(root)
    return {name for name in SCRIPTS if before[name] != after[name]}


OF_BASE = {"direct", "transitive", "inside", "module", "named"}


@pytest.mark.parametrize(
    ("file", "scripts"),
    [
        ("src/d2dmoe/base.py", OF_BASE),
        ("src/d2dmoe/middle.py", {"transitive"}),
        ("src/d2dmoe/alone.py", {"lone", "table", "whole"}),
        ("src/d2dmoe/sub/leaf.py", {"inside", "module", "named"}),
        ("scripts/direct.py", {"direct"}),
        ("scripts/named.py", {"named"}),
    ],
)
def test_an_edit_changes_just_the_scripts_that_import_it_directly_or_not(package, file, scripts):
    assert changed(package, file, SOURCES[file] + "\nEDIT = 1\n") == scripts


@pytest.mark.parametrize(
    ("file", "scripts"),
    [("src/d2dmoe/sub/__init__.py", {"table", "whole"}), ("src/d2dmoe/__init__.py", {"version"})],
)
def test_a_package_itself_counts_where_something_is_imported_from_it(package, file, scripts):
    """Not where a module inside of it is: it holds a table, of which the module needs nothing."""
    assert changed(package, file, SOURCES[file] + "\nEDIT = 1\n") == scripts


def test_comments_docstrings_and_formatting_change_nothing(package):
    text = (
        "# A comment.\nfrom d2dmoe.base import (\n    VALUE,\n)\n\n\n"
        'def f():\n    """Documented."""\n    return VALUE  # here\n'
    )
    assert changed(package, "src/d2dmoe/middle.py", text) == set()


@pytest.mark.parametrize(
    "text", ["VALUE = 2\n", "VALUE = 1.0\n", "VALUE = '1'\n", "VALUE = 1\nVALUE += 0\n"]
)
def test_any_change_of_meaning_counts(package, text):
    assert changed(package, "src/d2dmoe/base.py", text) == OF_BASE


def test_a_new_import_brings_its_module_in(package):
    edited = SOURCES["src/d2dmoe/middle.py"] + "\nfrom d2dmoe import alone\n"
    assert changed(package, "src/d2dmoe/middle.py", edited) == {"transitive"}
    found = changed(package, "src/d2dmoe/alone.py", "EDIT = 1\n")
    assert found == {"transitive", "lone", "table", "whole"}


def test_import_cycles_end(package):
    (package / "src/d2dmoe/base.py").write_text("import d2dmoe.middle\nVALUE = 1\n")
    assert len(set(digests(package).values())) == len(SCRIPTS)


def test_the_place_of_the_repository_does_not_matter(package, tmp_path_factory):
    elsewhere = write(tmp_path_factory.mktemp("elsewhere"), SOURCES)
    assert digests(package) == digests(elsewhere)


def test_a_missing_script_is_an_error(package):
    with pytest.raises(FileNotFoundError):
        code_digest(package / "scripts/none.py", package / "src")


def names(root: Path, script: str, modules: tuple[str, ...] = ()) -> set[str]:
    """The package's modules that a script and further modules import, as paths."""
    found = imported_modules(root / f"scripts/{script}.py", root / "src", modules)
    return {str(path.relative_to(root / "src" / "d2dmoe")) for path in found}


def test_only_modules_of_the_package_are_found(package):
    assert names(package, "lone") == {"alone.py"}
    assert names(package, "inside") == {"sub/leaf.py", "base.py"}
    assert names(package, "whole") == {"sub/__init__.py", "alone.py"}


# Modules that records name.


def test_named_modules_count_with_all_that_they_import(package):
    assert names(package, "named") == set()
    assert names(package, "named", ("d2dmoe.sub.leaf",)) == {"sub/leaf.py", "base.py"}
    assert names(package, "lone", ("d2dmoe.middle",)) == {"alone.py", "middle.py", "base.py"}


def test_modules_that_are_imported_anyway_change_no_digest_when_they_are_named(package):
    script, src = package / "scripts/transitive.py", package / "src"
    digests_ = {code_digest(script, src, modules) for modules in ((), ["d2dmoe.middle"])}
    assert len(digests_) == 1
    assert code_digest(script, src, ["d2dmoe.alone"]) not in digests_


def test_the_order_of_named_modules_does_not_matter(package):
    script, src = package / "scripts/named.py", package / "src"
    pair = ["d2dmoe.alone", "d2dmoe.sub.leaf"]
    assert code_digest(script, src, pair) == code_digest(script, src, pair[::-1])


EXTENSION = "from d2dmoe.base import VALUE\n\n\ndef mine():\n    return VALUE\n"


@pytest.fixture
def extension(tmp_path_factory, monkeypatch) -> Path:
    """A module of a user's own, in a folder in which Python finds it."""
    folder = write(tmp_path_factory.mktemp("own"), {"my_extension.py": EXTENSION})
    monkeypatch.syspath_prepend(folder)
    return folder / "my_extension.py"


def test_a_module_outside_of_the_package_is_found_as_python_finds_it(package, extension):
    assert file_of("my_extension", package / "src") == extension
    script, src = package / "scripts/named.py", package / "src"
    assert imported_modules(script, src, ["my_extension"]) == {extension, src / "d2dmoe/base.py"}


def test_an_edit_of_an_extension_or_of_what_it_imports_of_the_package_counts(package, extension):
    script, src = package / "scripts/named.py", package / "src"
    seen = {code_digest(script, src, ["my_extension"])}
    for path, text in {
        extension: EXTENSION + "\nEDIT = 1\n",
        src / "d2dmoe/base.py": "VALUE = 2\n",
    }.items():
        path.write_text(text)
        forget()
        seen.add(code_digest(script, src, ["my_extension"]))
    assert len(seen) == 3
    (src / "d2dmoe/alone.py").write_text("EDIT = 1\n")
    extension.write_text(EXTENSION + "\nEDIT = 1  # a comment\n")
    forget()
    assert code_digest(script, src, ["my_extension"]) in seen


def test_the_package_is_read_where_the_workflow_is_not_where_python_finds_it(package):
    """A copy of the project plans its own code, whichever is installed."""
    assert file_of("d2dmoe.base", package / "src") == package / "src/d2dmoe/base.py"


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.module"])
def test_a_module_that_is_nowhere_is_an_error_that_names_it(package, name):
    with pytest.raises(ModuleNotFoundError, match=name.split(".")[0]):
        file_of(name, package / "src")


def test_the_package_imports_itself_by_absolute_names_only():
    """The digest follows no others."""
    for path in (ROOT / "src" / "d2dmoe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: {node.lineno}"
