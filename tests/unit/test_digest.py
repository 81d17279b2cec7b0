"""Laws of the code digest: an edit changes the digests of just those scripts that import it."""

import ast
from pathlib import Path

import pytest

from d2dmoe.plan import digest
from d2dmoe.plan.digest import code_digest, imported_modules

SOURCES = {
    "src/d2dmoe/__init__.py": "",
    "src/d2dmoe/base.py": '"""Base."""\nVALUE = 1\n',
    "src/d2dmoe/middle.py": "from d2dmoe.base import VALUE\n\ndef f():\n    return VALUE\n",
    "src/d2dmoe/alone.py": "import math\n\ndef g():\n    return math.pi\n",
    "src/d2dmoe/sub/__init__.py": "",
    "src/d2dmoe/sub/leaf.py": "def h():\n    import d2dmoe.base as base\n    return base.VALUE\n",
    "scripts/direct.py": "from d2dmoe.base import VALUE\nprint(VALUE)\n",
    "scripts/transitive.py": "from d2dmoe import middle\nprint(middle.f())\n",
    "scripts/lone.py": "import d2dmoe.alone\nprint(d2dmoe.alone.g())\n",
    "scripts/inside.py": "from d2dmoe.sub.leaf import h\nprint(h())\n",
}
SCRIPTS = ("direct", "transitive", "lone", "inside")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def digests(root: Path) -> dict[str, str]:
    """Of every script, as a new process would see them."""
    for cached in (digest._tree, digest._imports, digest._hash):
        cached.cache_clear()
    return {name: code_digest(root / f"scripts/{name}.py", root / "src") for name in SCRIPTS}


def changed(root: Path, file: str, text: str) -> set[str]:
    """The scripts whose digests change when `file` holds `text`."""
    before = digests(root)
    (root / file).write_text(text)
    after = digests(root)
    return {name for name in SCRIPTS if before[name] != after[name]}


@pytest.mark.parametrize(
    ("file", "scripts"),
    [
        ("src/d2dmoe/base.py", {"direct", "transitive", "inside"}),
        ("src/d2dmoe/middle.py", {"transitive"}),
        ("src/d2dmoe/alone.py", {"lone"}),
        ("src/d2dmoe/sub/leaf.py", {"inside"}),
        ("src/d2dmoe/sub/__init__.py", {"inside"}),
        ("src/d2dmoe/__init__.py", set(SCRIPTS)),
        ("scripts/direct.py", {"direct"}),
    ],
)
def test_an_edit_changes_just_the_scripts_that_import_it_directly_or_not(package, file, scripts):
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
    assert changed(package, "src/d2dmoe/base.py", text) == {"direct", "transitive", "inside"}


def test_a_new_import_brings_its_module_in(package):
    edited = SOURCES["src/d2dmoe/middle.py"] + "\nfrom d2dmoe import alone\n"
    assert changed(package, "src/d2dmoe/middle.py", edited) == {"transitive"}
    assert changed(package, "src/d2dmoe/alone.py", "EDIT = 1\n") == {"transitive", "lone"}


def test_import_cycles_end(package):
    (package / "src/d2dmoe/base.py").write_text("import d2dmoe.middle\nVALUE = 1\n")
    assert len(set(digests(package).values())) == len(SCRIPTS)


def test_the_place_of_the_repository_does_not_matter(package, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name, text in SOURCES.items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(text)
    assert digests(package) == digests(elsewhere)


def test_a_missing_script_is_an_error(package):
    with pytest.raises(FileNotFoundError):
        code_digest(package / "scripts/none.py", package / "src")


def test_only_modules_of_the_package_are_found(package):
    found = imported_modules(package / "scripts/lone.py", package / "src")
    names = {str(path.relative_to(package / "src" / "d2dmoe")) for path in found}
    assert names == {"__init__.py", "alone.py"}


def test_an_architecture_that_is_imported_when_asked_for_is_a_part_of_the_stages():
    found = imported_modules(ROOT / "scripts" / "dense.py", ROOT / "src")
    models = set((ROOT / "src" / "d2dmoe" / "models").glob("*.py"))
    assert len(models) >= 5 and models <= found


def test_the_package_imports_itself_by_absolute_names_only():
    """The digest follows no others."""
    for path in (ROOT / "src" / "d2dmoe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: {node.lineno}"
