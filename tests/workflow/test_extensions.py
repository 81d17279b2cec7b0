"""A user's own method, rule, figure, architecture and activation go through the whole workflow: by
records of `toy/toy_records.py`, without a change of the project's code."""

import json
import shutil
import sys
from importlib import import_module

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.figures import FIGURES
from d2dmoe.methods import EVALUATIONS, METHODS
from d2dmoe.models import ARCHITECTURES
from d2dmoe.selection_rules import RULES
from workflow.conftest import ROOT, SUITES, Workspace, tiny

pytestmark = pytest.mark.workflow

TOY = ROOT / "tests/workflow/toy"
FIGURE, OWN_FIGURE = (f"results/figures/tiny/{name}.png" for name in ("figure_4", "figure_toy"))
TABLES = (ACTIVATIONS, ARCHITECTURES, EVALUATIONS, FIGURES, METHODS, RULES)


def config() -> dict:
    """Of `tiny.yaml` what leads to the two figures, with the toys in it."""
    whole = tiny()
    task = whole["tasks"]["tiny"]
    short = {"epochs": 1, "lr": 0.003, "batch_size": 100}
    task = {
        "data": task["data"],
        "model": {
            "architecture": "gated_vit",
            "activation": "relu6",
            "patch_size": 7,
            "layers": 1,
            "d_model": 16,
            "heads": 2,
            "d_ff": 32,
        },
        "dense": short | {"epochs": 3},
        "sparsify": short | {"mode": "gelu_clamped", "alpha": 0.001},  # keeps the activation
        "clustering": {"expert_size": 4},
        "router": short | {"width": 4},
        "select": {"above_mean": [0.0, 0.5, 1.0], "share": [0.0, 0.5, 1.0]},
        "variants": {
            "d2dmoe": {"method": "d2dmoe", "label": "above the mean", "select": "above_mean"},
            "toy": {"method": "toy", "label": "neurons removed"},
        },
        "figures": {"tradeoff": ["d2dmoe", "toy"], "toy": ["toy", "d2dmoe"]},
    }
    return whole | {"extensions": ["toy_records"], "tasks": {"tiny": task}}


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Workspace:
    """A workspace with the toys, in which both figures were drawn."""
    folder = tmp_path_factory.mktemp("extended")
    toys = shutil.copytree(TOY, folder / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    workspace = Workspace(folder / "project", config(), extensions=[toys])
    (workspace.folder / "report/figure_toy.rst").write_text("A figure of one's own.\n")
    workspace.make(FIGURE, OWN_FIGURE)
    return workspace


@pytest.fixture(scope="module")
def points(extended) -> pd.DataFrame:
    """The operating points, by their accuracy."""
    table = pd.read_csv(extended.folder / "results/tables/tiny/tradeoff.csv")
    return table[table["metric"] == "accuracy"]


def test_the_figures_are_drawn(extended):
    assert extended.figures("tiny") == {"figure_4", "figure_toy"}


def test_the_toy_method_is_measured_at_every_value_of_its_own_knob(points):
    toy = points[points["method"] == "toy"].sort_values("knob_value")
    assert set(toy["knob"]) == {"share"} and list(toy["knob_value"]) == [0.0, 0.5, 1.0]
    assert toy["flops_ratio"].is_monotonic_decreasing and toy["flops_ratio"].iloc[0] == 1
    dense = points.loc[points["variant"] == "dense", "value"].item()
    assert toy["value"].iloc[0] == dense  # without a change it is the dense model


def test_the_toy_rule_selects_fewer_experts_at_a_higher_value(points):
    ours = points[points["variant"] == "d2dmoe"].sort_values("knob_value")
    assert set(ours["knob"]) == {"above_mean"} and list(ours["knob_value"]) == [0.0, 0.5, 1.0]
    cost = ours["flops_ratio"]
    assert cost.is_monotonic_decreasing and cost.iloc[0] > 1 > cost.iloc[-1]  # with routers


def test_every_row_is_of_the_toy_architecture_with_the_toy_activation(points):
    assert set(points["model"]) == {"gated_vit-1x16-relu6"}


def test_models_are_saved_with_the_names_of_the_toys(extended):
    models = extended.find("models/tiny/seed-0/*/model.safetensors")
    assert len(models) == 5  # dense, fine-tuned, sparsified, clustered, routed
    for path in models:
        with safe_open(path, framework="np") as file:
            spec = json.loads(file.metadata()["spec"])
        assert (spec["architecture"], spec["activation"]) == ("gated_vit", "relu6")


def test_nothing_is_left_to_do(extended):
    assert extended.planned(FIGURE, OWN_FIGURE) == set()


def test_an_edit_of_a_toy_repeats_what_its_record_is_used_for(extended):
    (folder, _src) = extended.modules
    path = folder / "toy_rule.py"
    source = path.read_text()
    try:
        path.write_text(source + "\nADDED = 1\n")
        plan = extended.counted(FIGURE, OWN_FIGURE)
    finally:
        path.write_text(source)
    assert plan == {"evaluate": 1, "tradeoff": 1, "figure_4": 1, "figure_toy": 1}


def test_records_that_no_variant_uses_repeat_no_computation(configured, monkeypatch):
    """Claims, figures and the explorer may name any method and any rule: they are made anew."""
    monkeypatch.setattr(configured, "modules", [TOY, *configured.modules])
    configured.config["extensions"] = ["toy_records"]
    rules = configured.planned(*SUITES)
    drawn = ("figure_", "ablation_", "neighbours_", "saved_share", "differences")
    assert {x for x in rules if not x.startswith(drawn)} <= {"claims", "own_explorer"}


def test_a_module_that_is_not_found_ends_the_run_before_its_first_job(extended):
    before = extended.config
    extended.config = before | {"extensions": ["toy_record"]}
    try:
        result = extended.run(FIGURE)
    finally:
        extended.config = before
    assert result.returncode != 0 and "Traceback" not in result.stdout
    assert "extensions names the module 'toy_record', which cannot be imported" in result.stdout


@pytest.fixture
def toys(monkeypatch):
    """The records in the tables of this process, for one test."""
    before = [dict(table) for table in TABLES]
    monkeypatch.syspath_prepend(TOY)
    import_module("toy_records")
    yield
    for table, records in zip(TABLES, before, strict=True):
        table.clear()
        table.update(records)
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


def test_the_kernels_call_the_toy_activation(toys):
    pytest.importorskip("triton", reason="this platform has no Triton")
    from d2dmoe.kernels import persistent
    from d2dmoe.kernels.launch import Launch
    from d2dmoe.weights import ExpertWeights

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    up, down, z = (
        torch.randn(*shape, generator=generator).to(device)
        for shape in ((2, 16, 16), (2, 16, 16), (40, 16))
    )  # neurons beyond 6 are among them
    mask = torch.ones(40, 2, dtype=torch.bool, device=device)
    hidden = torch.einsum("td,ned->tne", z, up)
    assert (hidden > 6).any()
    expected = torch.einsum("tne,neo->to", torch.nn.functional.relu6(hidden), down)
    weights = ExpertWeights(up, down, "relu6")
    found = persistent.run(z, weights, Launch(superblock=64, tile=64), mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
