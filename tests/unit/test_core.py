"""Laws of the light core: a plain torch model needs no library that an extra brings."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from d2dmoe.errors import EXTRAS, MissingExtra, UserError, missing_extra
from d2dmoe.lookup import module_named, resolve

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {  # by the modules that they bring, where the names differ
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "lm_eval": "lm-eval",
    "huggingface_hub": "huggingface-hub",
}

WITHOUT = """
import json, sys
for module in json.loads(sys.argv[1]):
    sys.modules[module] = None  # as where it is not installed
"""
MODEL = """
import torch
from torch import nn
torch.manual_seed(0)
def block():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
z = torch.randn(20, 8)
"""
BY_PARTS = """
from pathlib import Path
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.flops import model_cost
from d2dmoe.io.tensors import load_tensors, save_tensors
from d2dmoe.layers import describe, rebuild
from d2dmoe.moe import MoE, set_selection, watch_inputs
from d2dmoe.router import norm_regression_loss
from d2dmoe.surgery import find

up, _, down = block()
model = nn.Sequential(FFN(up, down, "relu"), nn.Linear(8, 3))
dense = model(z)
ffns = find(model, FFN).values()
to_moe(model, [assign_neurons(f.activated.weight, 4, "kmeans", seed=0) for f in ffns])
torch.testing.assert_close(model(z), dense)
with torch.no_grad(), watch_inputs(model) as inputs:
    model(z)
add_routers(model, kind="regression", width=4)
for name, moe in find(model, MoE).items():
    norm_regression_loss(moe.router, moe, inputs[name]).backward()
set_selection(model, "dynamic_k", 0.5)
assert model_cost(model, {"input": z}).dense > 0
fresh = rebuild(nn.Sequential(block(), nn.Linear(8, 3)), describe(model))
fresh.load_state_dict(model.state_dict())
torch.testing.assert_close(fresh(z), model(z))
"""
BY_THE_INTERFACE = """
import d2dmoe
model = nn.Sequential(block(), nn.Linear(8, 3))
batches = [(z, torch.randint(3, (20,)))]
dense = model(z)
d2dmoe.convert(model, expert_size=8, example=z)
torch.testing.assert_close(model(z), dense)
d2dmoe.train_routers(model, batches, steps=2, width=4)
d2dmoe.set_operating_point(model, "dynamic_k", 0.5)
assert d2dmoe.evaluate(model, batches).flops > 0
"""
MISSING = """
from d2dmoe.errors import MissingExtra
from d2dmoe.models.build import build_model
for architecture, extra in {"bert": "hf", "gpt2": "hf", "gemma": "hf", "vit": "vision"}.items():
    try:
        build_model(architecture, {})
    except MissingExtra as error:
        assert f'pip install "d2dmoe[{extra}]"' in str(error), error
    else:
        raise AssertionError(architecture)
"""
LAZY = """
import sys
import d2dmoe
assert not {"torch", "numpy", "pydantic", "huggingface_hub"} & sys.modules.keys()
"""


def names(requirements: list[str]) -> set[str]:
    """The packages of requirements, without versions and extras."""
    return {re.split(r"[\[><=]", text)[0] for text in requirements}


def run(program: str) -> None:
    modules = json.dumps(sorted(EXTRAS))
    command = [sys.executable, "-c", WITHOUT + program, modules]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.workflow
def test_a_plain_model_is_converted_routed_and_measured_with_the_core_alone():
    run(MODEL + BY_PARTS + BY_THE_INTERFACE + MISSING)


def test_the_package_itself_imports_nothing_that_takes_time():
    run(LAZY)


def test_the_command_line_says_what_to_install_for_it(monkeypatch):
    (entry,) = PROJECT["project"]["scripts"].values()
    for name in [name for name in sys.modules if name.startswith("d2dmoe.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    resolve.cache_clear()
    with pytest.raises(SystemExit) as caught:
        resolve(entry)()
    assert str(caught.value).startswith("error: typer is not installed.")
    assert 'pip install "d2dmoe[cli]"' in str(caught.value)


def test_an_extra_is_named_for_what_it_brings():
    extras = PROJECT["project"]["optional-dependencies"]
    for module, extra in EXTRAS.items():
        assert PACKAGES.get(module, module) in names(extras[extra]), module
    assert not {PACKAGES.get(m, m) for m in EXTRAS} & names(PROJECT["project"]["dependencies"])


def test_every_library_that_is_imported_is_the_cores_or_an_extras():
    core = names(PROJECT["project"]["dependencies"])
    core |= {module for module, package in PACKAGES.items() if package in core}
    brought = {"d2dmoe", "pydantic_core", "triton", "snakemake_interface_logger_plugins"}
    known = {*EXTRAS, *core, *brought, *sys.stdlib_module_names}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            else:
                found = {node.module} if isinstance(node, ast.ImportFrom) else set()
            tops = {name.partition(".")[0] for name in found if name}
            assert tops <= known, f"{path}: {tops - known}"


def test_what_uv_installs_by_default_is_all_that_workflow_and_tests_need():
    """`uv run snakemake` and `uv run pytest` are the README's two commands."""
    (own,) = (text for text in PROJECT["dependency-groups"]["dev"] if text.startswith("d2dmoe["))
    extras = {name.strip() for name in own.removeprefix("d2dmoe[").rstrip("]").split(",")}
    assert {"cli", "pipeline"} <= extras
    of_pipeline = PROJECT["project"]["optional-dependencies"]["pipeline"]
    assert "d2dmoe[hf,vision]" in of_pipeline


@pytest.mark.parametrize("call", [module_named, resolve])
@pytest.mark.parametrize("module", ["transformers", "sklearn"])
def test_a_module_whose_extra_is_missing_is_one_message(call, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        call(module if call is module_named else f"{module}:anything")
    assert f'pip install "d2dmoe[{EXTRAS[module]}]"' in str(caught.value)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ImportError)


@pytest.mark.parametrize("name", ["no_such_module", "json.no_such_module", None])
def test_other_modules_are_missing_as_python_says_it(name):
    assert missing_extra(ModuleNotFoundError("x", name=name)) is None
    assert missing_extra(ImportError("cannot import", name="transformers")) is None
