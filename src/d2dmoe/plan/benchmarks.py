"""What is timed: the entries of each table of benchmarks, and what this machine can run of them."""

import shutil
from collections.abc import Mapping
from typing import Any

from d2dmoe.config.task import SUITES
from d2dmoe.plan.lineage import Lineage
from d2dmoe.plan.plan import Plan

LAYERS = ("cpu", "layer")  # tables of single layers, by which claim C9 is decided
APPENDIX = "_appendix"  # of a figure of the other layers of a table
DRAWN: dict[str, dict[str, str]] = {  # by the figure's name, which begins with its table's: how
    "cpu": {},
    "layer": {"layers": "first"},
    f"layer{APPENDIX}": {"layers": "others", "subject": "Other layers"},
    "model": {"subject": "Whole models"},
    "decode": {"subject": "Decoding"},
}


def tables(plan: Plan) -> dict[str, Mapping[str, Any]]:
    """The entries of each table; all tables but `cpu` need a GPU."""
    cfg = plan.config.benchmarks
    return {"cpu": cfg.cpu, "layer": cfg.gpu, "model": cfg.models, "decode": cfg.decode}


def entries(plan: Plan, table: str) -> list[dict[str, str]]:
    """The tables of a benchmark's entries."""
    return [{"path": f"results/benchmarks/{table}/{entry}.csv"} for entry in tables(plan)[table]]


def masks(plan: Plan, table: str, entry: str) -> list[str]:
    """The recorded masks, where an entry of a benchmark follows them."""
    follows = tables(plan)[table][entry].converted
    return ["results/benchmarks/masks.safetensors"] if follows else []


def masks_line(plan: Plan) -> Lineage:
    """The model whose masks are recorded."""
    options = plan.config.benchmarks.masks
    assert options is not None
    return plan.line(SUITES[0], options.task, options.variant)


def configured(plan: Plan) -> list[str]:
    """The tables that have entries."""
    return [name for name, own in tables(plan).items() if own]


def timed_here(plan: Plan) -> list[str]:
    """The tables that this machine can make."""
    names = configured(plan)
    return names if shutil.which("nvidia-smi") else [x for x in names if x == "cpu"]


def timed_layers(plan: Plan) -> list[str]:
    """The tables of layers that this machine can make."""
    return [f"results/benchmarks/{name}.csv" for name in timed_here(plan) if name in LAYERS]


def layer_figures(plan: Plan) -> dict[str, list[str]]:
    """The paper's figures of layers, 5 and, where layers differ in shape, 11."""
    names = [name for name in timed_here(plan) if name in LAYERS]
    shapes = {tuple(entry.shape.values()) for entry in tables(plan)["layer"].values()}
    found = {"figure_5": names, "figure_11": [f"layer{APPENDIX}"] if "layer" in names else []}
    if len(shapes) < 2:
        del found["figure_11"]
    return {figure: _drawn(own) for figure, own in found.items() if own}


def results(plan: Plan) -> list[str]:
    """The figures, and with them the tables, of what this machine can time, and their claims."""
    appendix = layer_figures(plan).get("figure_11", [])
    claims = ["results/benchmarks/claims.csv"] if timed_layers(plan) else []
    return [*_drawn(timed_here(plan)), *appendix, *claims]


def _drawn(names: list[str]) -> list[str]:
    return [f"results/figures/benchmarks/{name}.png" for name in names]
