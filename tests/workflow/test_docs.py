"""What the documents show works as they show it."""

import re

import pytest

from workflow.conftest import ROOT

pytestmark = pytest.mark.workflow


def test_the_library_example_runs(finished, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.S)
    for stage in ("sparsify", "router"):
        model = finished.find(f"models/**/{stage}/*/model.safetensors")[0]
        code = code.replace(f"results/models/…/{stage}/…/model.safetensors", str(model))
    assert "…/" not in code
    exec(compile(code, "docs/library.md", "exec"), {})
    assert int(capsys.readouterr().out) > 0


def test_the_readme_opens_with_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    run, test = re.search(r"```bash\n(.*?)```", readme, re.S)[1].strip().splitlines()
    assert run.split("#")[0].strip() == "pip install uv && uv run snakemake --cores 8 all"
    assert test.split("#")[0].strip() == "pip install uv && uv run pytest"
    assert test.split("#")[0].strip() in (ROOT / ".ci/run").read_text()
