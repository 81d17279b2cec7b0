"""Laws of the code digest: an edit changes the digests of just those jobs whose code it is."""

import os
import py_compile
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import machinery
from pathlib import Path
from typing import Any

import pytest

from d2dmoe.plan import digest
from d2dmoe.plan.digest import Use, code_digest, file_of, imported_modules

STAGES = """\
from dataclasses import dataclass

from d2dmoe.lookup import table_of


@dataclass(frozen=True)
class Stage:
    name: str


LAST = Stage("last")
STAGES = table_of([Stage("first"), LAST])


def last():
    return LAST
"""

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
    "src/d2dmoe/stages/__init__.py": STAGES,
    "src/d2dmoe/modes.py": "MODES = table_of([abs])\n",
    "scripts/all_stages.py": "from d2dmoe.stages import STAGES\nprint(STAGES)\n",
    "scripts/one_stage.py": "from d2dmoe.stages import STAGES\nprint(STAGES['first'])\n",
    "scripts/mode.py": "from d2dmoe.modes import MODES\nprint(MODES)\n",
}
SCRIPTS = [name[8:-3] for name in SOURCES if name.startswith("scripts/")]


@dataclass(frozen=True)
class Record:
    """Of a table, as the project's are."""

    name: str
    make: str | None = None
    loss: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    knobs: Collection[str] = ()


def uses_of(*modules: str) -> list[Use]:
    """Records that name them."""
    return [Use(Record(name, make=f"{name}:f"), ("make",)) for name in modules]


FIRST = Record("first")
USES = {  # by script; the others read tables as a whole
    "named": uses_of("d2dmoe.sub.leaf"),
    "one_stage": [Use(FIRST)],
    "mode": [Use(FIRST)],
}


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
    return {x: code_digest(root / f"scripts/{x}.py", src, USES.get(x)) for x in SCRIPTS}


def changed(root: Path, file: str, text: str) -> set[str]:
    """The scripts whose digests change when `file` holds `text`."""
    before = digests(root)
    (root / file).write_text(text)
    after = digests(root)
    return {name for name in SCRIPTS if before[name] != after[name]}


def parsed(monkeypatch, kept: Path) -> list[str]:
    """A new process that keeps what files say in a file; the names of those that it parses."""
    names, parse = [], digest._parse
    monkeypatch.setattr(digest, "KEPT", digest._Kept())
    monkeypatch.setattr(digest.atexit, "register", lambda *_: None)
    monkeypatch.setattr(
        digest, "_parse", lambda path, text: names.append(path.name) or parse(path, text)
    )
    digest.KEPT.use(kept)
    return names


def test_what_files_say_is_kept_for_later_processes(package, monkeypatch, tmp_path):
    kept = tmp_path / "code.json"
    with monkeypatch.context() as patch:
        first, before = parsed(patch, kept), digests(package)
        digest.KEPT.write(kept)
    assert {"base.py", "direct.py"} <= set(first)
    with monkeypatch.context() as patch:
        second = parsed(patch, kept)
        assert digests(package) == before and second == []
    (package / "src/d2dmoe/base.py").write_text("VALUE = 2\n")
    with monkeypatch.context() as patch:
        third, after = parsed(patch, kept), digests(package)
    assert third == ["base.py"] and {x for x in SCRIPTS if before[x] != after[x]} == OF_BASE


def test_a_damaged_file_of_what_files_say_is_not_used(package, monkeypatch, tmp_path):
    kept = tmp_path / "code.json"
    with monkeypatch.context() as patch:
        first, before = parsed(patch, kept), digests(package)
        digest.KEPT.write(kept)
    whole = kept.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + b"\xff" + whole[middle + 1 :], b"", b"1\n2"):
        kept.write_bytes(damaged)
        with monkeypatch.context() as patch:
            again = parsed(patch, kept)
            assert digests(package) == before and again == first


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


# Tables, and the records that a job uses.


OF_STAGES = {"all_stages", "one_stage"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('Stage("first")', 'Stage("earliest")'),
        ("LAST])", 'LAST, Stage("new")])'),
        ("STAGES =", "STAGES: dict[str, Stage] ="),
        ('LAST = Stage("last")', 'LAST = Stage("latest")'),  # a record beside its table
        ("STAGES =", 'MORE = Stage("more")\nSTAGES ='),
    ],
)
def test_a_table_and_its_records_count_where_a_script_reads_all_of_it_alone(package, old, new):
    edited = STAGES.replace(old, new)
    assert edited != STAGES
    assert changed(package, "src/d2dmoe/stages/__init__.py", edited) == {"all_stages"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: str", "name: str\n    value: int = 0"),
        ("return LAST", "return None"),
        ("import table_of", "import table_of, resolve"),
        ("\n\ndef", "LIMIT = int(3)\n\n\ndef"),
    ],
)
def test_what_else_a_tables_file_says_counts_for_all_that_import_it(package, old, new):
    edited = STAGES.replace(old, new)
    assert edited != STAGES
    assert changed(package, "src/d2dmoe/stages/__init__.py", edited) == OF_STAGES


def test_a_table_whose_records_no_job_says_that_it_uses_counts_as_all_else_does(package):
    """Its records may be code, and nothing else would tell of their edits."""
    assert changed(package, "src/d2dmoe/modes.py", "MODES = table_of([abs, min])\n") == {"mode"}


def test_a_job_that_uses_no_record_is_not_one_that_reads_all(package):
    script, src = package / "scripts/all_stages.py", package / "src"
    assert code_digest(script, src, ()) != code_digest(script, src, None)


@pytest.mark.parametrize("script", ["direct", "all_stages"])
def test_any_word_of_a_used_record_counts(package, script):
    path, src = package / f"scripts/{script}.py", package / "src"
    one = Record("x", make="d2dmoe.base:f", options={"a": {"b": 1}}, knobs=("k",))
    edits = [
        one,
        replace(one, name="y"),
        replace(one, make="d2dmoe.base:g"),
        replace(one, loss="d2dmoe.base:f"),
        replace(one, options={"a": {"b": 2}}),
        replace(one, options={"a": {}}),
        replace(one, options={}),
        replace(one, knobs=("k", "l")),
    ]
    found = [code_digest(path, src, [Use(edit, ("make",))]) for edit in edits]
    assert len(set(found)) == len(edits)
    assert code_digest(path, src, [Use(replace(one), ("make",))]) == found[0]


@pytest.mark.parametrize(
    "values",
    [
        {"knobs": {"first": FIRST}},
        {"options": {"kind": {"first": FIRST}}},
    ],
)
def test_records_of_a_table_that_a_record_points_to_do_not_count(package, values):
    """Of an option's name and a table alone the name does."""

    def digest_of(values: dict[str, Any]) -> str:
        use = Use(Record("x", **values))
        return code_digest(package / "scripts/direct.py", package / "src", [use])

    before = digest_of(values)
    more = {"first": replace(FIRST, make="d2dmoe.base:f"), "second": Record("second")}
    if "knobs" in values:
        assert digest_of({"knobs": more}) == before
    else:
        assert digest_of({"options": {"kind": more}}) == before
        assert digest_of({"options": {"sort": more}}) != before


def test_digests_are_the_same_in_every_process(package):
    """Texts hash otherwise in each, so that sets have another order."""
    code = (
        "from dataclasses import dataclass\nfrom pathlib import Path\n"
        "from d2dmoe.plan.digest import Use, code_digest\n"
        "@dataclass\nclass Record:\n    knobs: frozenset\n"
        "uses = [Use(Record(frozenset('abcdefgh'))), Use(Record(frozenset('xyz')))]\n"
        f"root = Path({str(package)!r})\n"
        "print(code_digest(root / 'scripts/direct.py', root / 'src', uses))\n"
    )
    found = set()
    for seed in "01":
        variables = os.environ | {"PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", code]
        result = subprocess.run(run, env=variables, capture_output=True, text=True, check=True)
        found.add(result.stdout)
    assert len(found) == 1


def test_the_order_of_records_and_how_often_they_are_used_do_not_matter(package):
    script, src = package / "scripts/named.py", package / "src"
    pair = uses_of("d2dmoe.alone", "d2dmoe.sub.leaf")
    digests_ = {code_digest(script, src, uses) for uses in (pair, pair[::-1], pair + pair)}
    assert len(digests_) == 1


# Modules that records name.


def test_named_modules_count_with_all_that_they_import(package):
    assert names(package, "named") == set()
    assert names(package, "named", ("d2dmoe.sub.leaf",)) == {"sub/leaf.py", "base.py"}
    assert names(package, "lone", ("d2dmoe.middle",)) == {"alone.py", "middle.py", "base.py"}


def test_the_references_that_a_job_follows_count_alone():
    record = Record("x", make="d2dmoe.middle:f", loss="d2dmoe.alone:g")
    assert Use(record).modules == []
    assert Use(record, ("make",)).modules == ["d2dmoe.middle"]
    assert Use(record, ("make", "loss")).modules == ["d2dmoe.middle", "d2dmoe.alone"]
    assert Use(replace(record, loss=None), ("loss",)).modules == []
    assert Use(record, ("select", "loss")).modules == ["d2dmoe.alone"]  # it has no `select`


def edits(root: Path, uses: Iterable[Use], file: Path) -> bool:
    """Whether an edit of a file changes the digest of what uses some records."""
    script, src, uses = root / "scripts/named.py", root / "src", list(uses)
    text, before = file.read_text(), code_digest(script, src, uses)
    file.write_text(f"{text}\nEDIT = 1\n")
    forget()
    after = code_digest(script, src, uses)
    file.write_text(text)
    forget()
    assert code_digest(script, src, uses) == before
    return after != before


@pytest.mark.parametrize(
    ("followed", "files"),
    [((), set()), (("make",), {"middle.py", "base.py"}), (("loss",), {"alone.py"})],
)
def test_an_edit_of_a_module_behind_a_reference_counts_where_it_is_followed(
    package, followed, files
):
    use = Use(Record("x", make="d2dmoe.middle:f", loss="d2dmoe.alone:g"), followed)
    own = package / "src/d2dmoe"
    assert {str(x.relative_to(own)) for x in own.rglob("*.py") if edits(package, [use], x)} == files


def test_modules_that_are_imported_anyway_add_nothing(package):
    script, src = package / "scripts/transitive.py", package / "src"
    record = Record("x", make="d2dmoe.middle:f", loss="d2dmoe.alone:g")
    found = [code_digest(script, src, [Use(record, x)]) for x in ((), ("make",), ("loss",))]
    assert found[0] == found[1] != found[2]


# Extensions.


EXTENSION = {  # modules of a user's own, in a folder in which Python finds them
    "my_extension.py": "from d2dmoe.base import VALUE\nfrom my_helper import half\n",
    "my_helper.py": "import my_constants\n\ndef half():\n    return my_constants.VALUE / 2\n",
    "my_constants.py": "VALUE = 4\nMINE = table_of([1, 2])\n",
    "my_other.py": "import math\n",
    "my_package/__init__.py": "from my_package.inner.deep import f\n",
    "my_package/near.py": "from .inner import deep\nfrom . import beside\n",
    "my_package/beside.py": "import my_constants\n",
    "my_package/inner/__init__.py": "",
    "my_package/inner/deep.py": "from ..far import g\n\ndef f():\n    return g\n",
    "my_package/far.py": "def g():\n    pass\n",
    "my_folder/module.py": "import my_other\n",
}
OF_MINE = {"my_extension.py", "my_helper.py", "my_constants.py"}


@pytest.fixture
def extension(tmp_path_factory, monkeypatch) -> Path:
    folder = write(tmp_path_factory.mktemp("own"), EXTENSION)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]  # of packages, in which Python looked for a module


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("my_extension", OF_MINE),
        ("my_helper", {"my_helper.py", "my_constants.py"}),
        ("my_other", {"my_other.py"}),
        ("my_package.far", {"my_package/far.py"}),
        ("my_package.inner.deep", {"my_package/inner/deep.py", "my_package/far.py"}),
        (
            "my_package",
            {"my_package/__init__.py", "my_package/inner/deep.py", "my_package/far.py"},
        ),
        (
            "my_package.near",
            {f"my_package/{x}.py" for x in ("near", "beside", "inner/deep", "far")}
            | {"my_constants.py"},
        ),
        ("my_folder.module", {"my_folder/module.py"}),  # which lies beside no other
    ],
)
def test_an_extensions_modules_count_with_those_beside_them(package, extension, module, files):
    use = uses_of(module)
    found = {path for path in extension.rglob("*.py") if edits(package, use, path)}
    assert {str(path.relative_to(extension)) for path in found} == files
    imported = imported_modules(package / "scripts/named.py", package / "src", [module])
    assert found == {path for path in imported if path.is_relative_to(extension)}


def test_what_an_extension_imports_of_the_package_counts_and_nothing_else_of_it(package, extension):
    own = package / "src/d2dmoe"
    uses = uses_of("my_extension")
    found = {path.name for path in own.rglob("*.py") if edits(package, uses, path)}
    assert found == {"base.py"}


def test_an_extensions_own_tables_count(package, extension):
    """No job says which of their records it uses."""
    script, src = package / "scripts/named.py", package / "src"
    before = code_digest(script, src, uses_of("my_extension"))
    text = EXTENSION["my_constants.py"].replace("[1, 2]", "[1, 3]")
    (extension / "my_constants.py").write_text(text)
    forget()
    assert code_digest(script, src, uses_of("my_extension")) != before


def test_comments_in_an_extension_change_nothing(package, extension):
    script, src = package / "scripts/named.py", package / "src"
    before = code_digest(script, src, uses_of("my_extension"))
    (extension / "my_helper.py").write_text(f"# Comment.\n{EXTENSION['my_helper.py']}")
    forget()
    assert code_digest(script, src, uses_of("my_extension")) == before


def test_an_extension_beside_the_package_is_one_as_well(package, monkeypatch):
    """A source folder of one's own may be the project's."""
    write(package / "src", {x: EXTENSION[x] for x in OF_MINE})
    monkeypatch.syspath_prepend(package / "src")
    uses = uses_of("my_extension")
    found = {x.name for x in (package / "src").glob("*.py") if edits(package, uses, x)}
    assert found == OF_MINE


def test_a_module_is_found_as_python_finds_it(package, extension):
    src = package / "src"
    assert file_of("my_extension", src) == extension / "my_extension.py"
    assert file_of("my_package", src) == extension / "my_package/__init__.py"
    assert file_of("my_folder.module", src) == extension / "my_folder/module.py"
    assert file_of("my_folder", src) is None  # nothing but a folder


def test_the_package_is_read_where_the_workflow_is_not_where_python_finds_it(package):
    """A copy of the project plans its own code, whichever is installed."""
    assert file_of("d2dmoe.base", package / "src") == package / "src/d2dmoe/base.py"
    with pytest.raises(ModuleNotFoundError, match="d2dmoe.moe"):
        file_of("d2dmoe.moe", package / "src")


@pytest.mark.parametrize(
    "name",
    ["no_such_module", "no_such_package.module", "d2dmoe.nothing"]
    + ["my_package.nothing", "my_other.nothing"],
)
def test_a_module_that_is_nowhere_is_an_error_that_names_it(package, extension, name):
    with pytest.raises(ModuleNotFoundError, match=name.replace("package.module", "package")):
        file_of(name, package / "src")


LIBRARIES = ["sys", "builtins", "math", "_thread", "os", "os.path", "json", "json.decoder"]
LIBRARIES += ["torch", "torch.nn.functional", "numpy.linalg", "yaml", "_pytest.python"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_and_built_in_modules_do_not_count(package, name):
    assert file_of(name, package / "src") is None
    assert names(package, "named", (name,)) == set()


def test_no_module_of_a_library_is_imported_to_plan():
    code = (
        "import sys; from pathlib import Path; from d2dmoe.plan.digest import file_of\n"
        "file_of('torch.nn.functional', Path('src')); print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_libraries_that_are_installed_elsewhere_do_not_count_either(
    package, extension, monkeypatch
):
    """As a user's own, or a distribution's."""
    for folder in ("site-packages", "dist-packages"):
        name = f"my_{folder[:4]}_library"
        write(extension / folder, {f"{name}.py": "import my_other\n"})
        monkeypatch.syspath_prepend(extension / folder)
        assert file_of(name, package / "src") is None


def test_compiled_modules_of_an_extension_do_not_count(package, extension):
    """Shared libraries, and byte code without its source, alone or in a package."""
    ending = machinery.EXTENSION_SUFFIXES[0]
    for name in ("my_fast", "my_package/fast"):
        (extension / f"{name}{ending}").write_bytes(b"\x7fELF\xff\xfe")
    for name in ("my_bytes", "my_package/bytes"):
        py_compile.compile(str(extension / "my_other.py"), str(extension / f"{name}.pyc"))
    (extension / "my_extension.py").write_text("import my_fast\nfrom my_package import fast\n")
    script, src = package / "scripts/named.py", package / "src"
    for module in ("my_fast", "my_bytes", "my_package.fast", "my_package.bytes"):
        assert file_of(module, src) is None
        assert len(code_digest(script, src, uses_of(module))) == 16
    assert imported_modules(script, src, ["my_extension"]) == {
        extension / "my_extension.py",
        *imported_modules(script, src, ["my_package"]),
    }
