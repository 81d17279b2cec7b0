"""What the documents show works as they show it."""

import re
from fnmatch import fnmatch
from importlib import import_module

import pytest

from d2dmoe.spec import ModelSpec, build
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
        (shown,) = re.findall(rf"results/models/.*/{step.stage.name}-….*safetensors", code)
        assert fnmatch(step.model, shown.replace("…", "*"))
        code = code.replace(shown, str(finished_language.folder / step.model))
    monkeypatch.chdir(tmp_path)
    names = run_example(code)
    assert float(capsys.readouterr().out) > 0
    converted, spec = names["load_model"]("converted.safetensors")
    assert type(converted).__name__ == "GPT2LMHeadModel" and spec == names["spec"]
    exec(compile(EXAMPLES[1], "docs/library.md", "exec"), names)
    assert "of the experts in" in capsys.readouterr().out
    exec(compile(EXAMPLES[2].replace('"cuda"', '"cpu"'), "docs/library.md", "exec"), names)
    assert "MiB of experts are on the device" in capsys.readouterr().out


def test_the_example_of_a_published_checkpoint_runs_but_for_the_hub():
    code = EXAMPLES[3].replace('"hub:openai-community/gpt2"', '"scratch"')
    code = code.replace('"layers": 12', '"layers": 1')
    assert "scratch" in code and '"layers": 1,' in code
    names = run_example(code)
    (spec,) = re.findall(r"`d2dmoe\.spec\.(ModelSpec\(.*?\))`", LIBRARY)
    spec = eval(spec, names | {"ModelSpec": ModelSpec})
    assert build(spec).state_dict().keys() == names["model"].state_dict().keys()


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
