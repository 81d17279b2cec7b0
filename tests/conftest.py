"""Fixtures for all tests: a minimal valid configuration, and the repository that it is for."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from snakemake.utils import available_cpu_count

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a network; read when the hub's client is imported
# Compiled modules are kept, whatever the environment says: every job imports them anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Groups of tests in the order in which processes take them; `test_commands` uses what `finished`
# has made.
LONGEST = (
    "finished",
    "test_slurm",
    "finished_language",
    "test_site",
    "test_own_model",
    "test_several",
    "test_extensions",
    "test_commands",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole-slurm", action="store_true", help="run the whole tiny workflow through sbatch too"
    )
    parser.addoption(
        "--hundred-steps",
        action="store_true",
        help="compare a hundred steps of every stage in two processes with those in one",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the processes that run tests; the one that hands them out needs no torch."""
    if config.option.dist != "no":
        return
    import torch

    torch.set_num_threads(1)  # tests run side by side; and the last bits of sums depend on it
    if not torch.cuda.is_available():  # kernels run in Triton's interpreter; read on its import
        os.environ["TRITON_INTERPRET"] = "1"
    gc.disable()  # what the imports make stays; on again when all tests are collected


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One per CPU; and one more where tests of the workflow, which wait for other processes, would
    leave CPUs idle."""
    return available_cpu_count() + ("not workflow" not in config.option.markexpr)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that share a fixture's work run in one process: those of a file, or of a finished
    workflow."""
    shared = {"finished", "finished_language"} & set(getattr(item, "fixturenames", ()))
    item.add_marker(pytest.mark.xdist_group(min(shared, default=item.path.stem)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that the processes end together; then those that wait for SLURM, while
    others compute."""
    ranks = {group: rank for rank, group in enumerate(LONGEST)}

    def rank(item: pytest.Item) -> int:
        marker = item.get_closest_marker("xdist_group")
        return ranks.get(marker.args[0], len(ranks)) if marker else len(ranks)

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Collections of garbage leave out what the imports made: a million objects that stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository root with the image folder that `raw` names; its class folders are empty."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def raw() -> dict[str, Any]:
    """The smallest valid configuration, as YAML would give it."""
    training = {"epochs": 3, "lr": 0.001, "batch_size": 8}
    return {
        "seeds": [0, 1],
        "tasks": {
            "tiny": {
                "data": {
                    "kind": "images",
                    "source": "path:images",
                    "image_size": 8,
                    "validation": 4,
                    "mean": [0.5, 0.5, 0.5],
                    "std": [0.25, 0.25, 0.25],
                },
                "model": {
                    "architecture": "vit",
                    "patch_size": 4,
                    "layers": 2,
                    "d_model": 16,
                    "heads": 2,
                    "d_ff": 32,
                },
                "dense": {**training, "epochs": 5},
                "sparsify": {**training, "mode": "relu_hoyer", "alpha": 0.1},
                "clustering": {"expert_size": 4},
                "router": {**training, "epochs": 2, "width": 8},
                "select": {"dynamic_k": [0.0, 0.5], "top_k": [1, 8], "coverage": [0.9]},
                "variants": {
                    "sparse": {"method": "d2dmoe", "label": "D2DMoE"},
                    "sparser": {
                        "method": "d2dmoe",
                        "label": "stronger penalty",
                        "sparsify": {"alpha": 0.2},
                    },
                    "static": {"method": "d2dmoe", "label": "static", "select": "top_k"},
                    "random": {
                        "method": "d2dmoe",
                        "label": "random clustering",
                        "clustering": {"method": "random"},
                    },
                    "moefication": {"method": "moefication", "label": "MoEfication"},
                },
                "figures": {
                    "tradeoff": ["sparse", "moefication"],
                    "base_sparsity": ["sparse", "sparser"],
                    "active_neurons": ["sparse"],
                    "selection_rules": ["sparse", "static"],
                    "layers": {"variants": ["sparse"], "values": [0.0, 0.5]},
                    "load_maps": {"variant": "sparse", "value": 0.5},
                    "expert_sizes": ["sparse"],
                },
            }
        },
    }
