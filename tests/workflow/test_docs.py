"""What the documents show works as they show it."""

import re
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest

import d2dmoe
from d2dmoe.layers import describe
from workflow.conftest import ROOT

pytestmark = pytest.mark.workflow


LIBRARY = (ROOT / "docs/library.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", LIBRARY, re.S)


def run_example(code: str) -> dict:
    names = {}
    exec(compile(code, "docs/library.md", "exec"), names)
    return names


def test_the_library_example_runs(finished_language, capsys, tmp_path, monkeypatch):
    code = EXAMPLES[0]
    converted = finished_language.plan.line("main", "gpt2", "d2dmoe")
    for step in (converted.step_of("sparsify"), converted.last):
        (shown,) = re.findall(rf"results/models/.*/{step.stage.name}-…", code)
        folder = str(Path(step.model).parent)
        assert fnmatch(folder, shown.replace("…", "*"))
        code = code.replace(shown, str(finished_language.folder / folder))
    monkeypatch.chdir(tmp_path)
    names = run_example(code)
    assert float(capsys.readouterr().out) > 0
    saved = names["d2dmoe"].from_pretrained("converted")
    assert type(saved).__name__ == "GPT2LMHeadModel"
    assert describe(saved) == describe(names["model"])
    exec(compile(EXAMPLES[1], "docs/library.md", "exec"), names)
    assert "of the experts in" in capsys.readouterr().out
    exec(compile(EXAMPLES[2].replace('"cuda"', '"cpu"'), "docs/library.md", "exec"), names)
    assert "MiB of experts are on the device" in capsys.readouterr().out


def test_the_library_page_shows_public_functions_only():
    imported = re.findall(r"^\s*(?:from|import) (\S+)", "".join(EXAMPLES), re.M)
    assert {*imported} == {"torch", "d2dmoe"}
    shown = re.findall(r"d2dmoe\.(\w+)", "".join(EXAMPLES))
    assert shown and {*shown} <= {*d2dmoe.PUBLIC}


def test_the_tokenizer_opens_as_shown(finished_language, monkeypatch):
    (opening,) = re.findall(r"`(transformers\.PreTrainedTokenizerFast\(.*?\))`", LIBRARY)
    monkeypatch.chdir(finished_language.folder)
    (shown,) = re.findall(r'"(results/.*)"', opening)
    (path,) = finished_language.folder.glob(shown.replace("…", "*"))
    opening = opening.replace(shown, str(path))
    tokenizer = eval(opening, {"transformers": import_module("transformers")})
    text = "Fellow-Citizens of the Senate"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_files_that_the_library_page_links_are_there():
    for path in re.findall(r"\]\((\.\./[^)]+)\)", LIBRARY):
        assert (ROOT / "docs" / path).exists()


def test_the_readme_opens_with_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    run, test = re.search(r"```bash\n(.*?)```", readme, re.S)[1].strip().splitlines()
    assert run.split("#")[0].strip() == "pip install uv && uv run snakemake --cores 8 all"
    assert test.split("#")[0].strip() == "pip install uv && uv run pytest"
    assert test.split("#")[0].strip() in (ROOT / ".ci/run").read_text()
