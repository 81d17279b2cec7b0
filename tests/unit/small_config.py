"""A small configuration with all that a task can have: suites, compressed models, trials."""

import copy
from pathlib import Path
from typing import Any

import pytest

from d2dmoe.errors import ConfigError
from d2dmoe.plan.plan import load_plan

RATES = [0.0005, 0.001]


def with_everything(raw: dict[str, Any]) -> dict[str, Any]:
    """A copy of the minimal configuration of images with every method, suite and compression."""
    raw = copy.deepcopy(raw)
    task = raw["tasks"]["tiny"]
    training = {"lr": 0.001, "batch_size": 8}
    task["projections"] = {**training, "epochs": 1, "multiple": 4}
    task["clustering"]["projection_expert_size"] = 2
    task["router"]["projection_width"] = 4
    task["ztw"] = {**training, "epochs": 5}
    task["avit"] = {**training, "epochs": 5}
    task["factorllm"] = {**training, "epochs": 5}
    task["ldpruner"] = {**training, "epochs": 1}
    task["dyn_adapter"] = {**training, "epochs": 5}
    task["seer"] = {**training, "epochs": 1, "active": 0.5}
    task["sam"] = {**training, "epochs": 1, "active": 0.5}
    task["select"]["grouped"] = [0.5, 1.0]
    task["select"]["active"] = [0.5, 1.0]
    task["select"]["sensitivity"] = [0.0, 0.1]
    task["cmoe"] = {**training, "epochs": 1, "shared": 2, "top_k": 4}
    task["select"]["confidence"] = [0.0, 0.9]
    task["variants"] |= {
        "attention": {"method": "d2dmoe", "label": "attention too", "projections": {}},
        "ztw": {"method": "ztw", "label": "ZTW"},
        "avit": {"method": "avit", "label": "A-ViT", "depths": [1.0, 1.5]},
    }
    task["figures"]["tradeoff"] = ["sparse", "attention", "moefication", "ztw", "avit"]
    task["tune"] = {**training, "epochs": 1, "tau": [0.1, 0.5]}
    task["select"]["true_norms"] = [0.0, 0.5]
    task["ablations"] = {
        "variants": {
            "binary": {"method": "d2dmoe", "label": "binary", "router": {"kind": "classification"}},
            "wide": {"method": "d2dmoe", "label": "wide", "router": {"width": 16}},
            "tuned": {"method": "extended", "label": "tuned", "tune": {}}
            | {"router": {"kind": "root_regression"}},
            "bound": {"method": "extended", "label": "true norms", "select": "true_norms"},
            "narrow": {"method": "narrow", "label": "narrow", "widths": [8, 16]},
        },
        "figures": {"routers": ["sparse", "binary"], "router_widths": ["sparse", "wide"]},
    }
    task["bases"] = {
        "pruned": {**training, "kind": "prune", "label": "pruned", "epochs": 1}
        | {"heads": 0.5, "neurons": 0.5},
        "student": {**training, "kind": "distill", "label": "student", "epochs": 4}
        | {"model": task["model"] | {"d_model": 8, "d_ff": 16}},
    }
    task["compatibility"] = {
        "variants": {
            "pruned_sparse": {"method": "d2dmoe", "label": "pruned, ours", "base": "pruned"},
            "student_sparse": {"method": "d2dmoe", "label": "student, ours", "base": "student"},
            "int8": {"method": "quantized", "label": "dense, int8", "quantize": "int8"},
            "sparse_int8": {"method": "d2dmoe", "label": "ours, int8", "quantize": "int8"},
        },
        "figures": {
            "pruned": ["sparse", "pruned", "pruned_sparse"],
            "distilled": ["student", "student_sparse"],
            "quantized": ["int8", "sparse_int8"],
        },
    }
    task["select"]["density"] = [1.0, 0.5]
    task["neighbours"] = {
        "variants": {
            "cats": {"method": "cats", "label": "CATS", "expert_size": 4},
            "chess": {
                "method": "chess",
                "label": "CHESS",
                "start": "sparsified",
                "attention": True,
            },
            "teal": {"method": "teal", "label": "TEAL"},
            "carved": {"method": "cmoe", "label": "CMoE", "start": "sparsified"},
            "carved_dense": {"method": "cmoe", "label": "CMoE of the dense model"},
            "carved_tuned": {"method": "cmoe_tuned", "label": "CMoE, tuned"},
            "factors": {"method": "factorllm", "label": "FactorLLM", "active": [1, 3]},
            "adapted": {"method": "dyn_adapter", "label": "Dyn-Adapter"},
            "fewer": {"method": "seer", "label": "SEER-MoE", "removed": 0.25},
            "grouped": {"method": "sam", "label": "SAM", "groups": 2},
            "leaner": {"method": "ldpruner", "label": "LD-Pruner", "removed": [1, 2]},
            "adaptive": {"method": "adapmoe", "label": "AdapMoE"},
        },
        "figures": {"neighbours": ["sparse", "cats", "chess", "teal", "carved"]},
    }
    tuned = ["dense_finetuned", *task["figures"]["tradeoff"]]
    task["tuning"] = {name: list(RATES) for name in tuned}
    return raw


def with_language(raw: dict, architecture: str) -> dict:
    """A copy of `raw` whose task is of a language model."""
    raw = copy.deepcopy(raw)
    task = raw["tasks"]["tiny"]
    task["model"] = {"architecture": architecture, "layers": 2, "d_model": 16, "heads": 4}
    task["model"] |= {"d_ff": 32, "positions": 12}
    if architecture == "gemma":
        task["model"] |= {"head_dim": 6, "key_value_heads": 2}
    task["data"] = {"kind": "texts" if architecture == "bert" else "corpus", "length": 12}
    task["data"] |= {"source": "hub:some/set", "validation": 4}
    task["data"]["tokenizer"] = {"source": "train", "vocab_size": 300}
    del task["figures"]["load_maps"]
    return raw


def refusal(raw: dict[str, Any], root: Path, key: str, value: Any) -> str:
    """The message about a configuration whose task has a wrong value, by its dotted key."""
    place = raw["tasks"]["tiny"]
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(ConfigError) as caught:
        load_plan(raw, root)
    return str(caught.value)
