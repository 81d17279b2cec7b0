"""The usual options of a task that converts pretrained weights, where its sections lack them."""

import re
from collections.abc import Mapping
from typing import Any

from d2dmoe.config.stages import ClusteringConfig, ProjectionsConfig, RouterConfig, SparsifyConfig
from d2dmoe.config.strict import Strict
from d2dmoe.config.task import SUITES
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.methods.checks import divisors
from d2dmoe.selection_rules import RULES, Rule

Options = Mapping[str, Any]  # of a section, as YAML gives it: any value may be wrong

# Passes over the data: a classifier's head is to be trained, a language model has its own, and a
# pass over a corpus is long.
DENSE = {"images": 3.0, "texts": 3.0, "corpus": 0.0}
SPARSIFY = {"images": 3.0, "texts": 3.0, "corpus": 1.0}
ROUTER = {"images": 1.0, "texts": 1.0, "corpus": 0.2}
IMITATION = 0.1  # of attention projections; of the sparsification's passes
ALPHA = {"images": 0.004, "texts": 0.0001, "corpus": 0.0003}  # as in config.yaml
RATE, FRESH_RATE = 0.00005, 0.001  # of weights that were trained before; of new modules
BATCH = {"images": 32, "texts": 32, "corpus": 8}
EVALUATED = {"images": 64, "texts": 64, "corpus": 8}  # samples at once: a corpus' logits are large

EXPERTS = 24  # of an FFN, at least: the paper's number where it measures time
PROJECTION_EXPERT = 8  # neurons; an attention projection's MLP has a multiple of them
ROUTER_SHARE = 6  # of d_model is a router's width, as the paper's 128 of 768
VARIANTS = {"d2dmoe": {"method": "d2dmoe", "label": "D2DMoE"}}


def usual_sections(task: Options, kind: str, model: Options) -> dict[str, Any]:
    """The sections of a task, filled in where they lack something.

    Args:
        task: what it gives.
        kind: of its data.
        model: its section `model`, with all sizes.
    """
    size = expert_size(size_of(model.get("d_ff")))
    width = max(8, size_of(model.get("d_model")) // ROUTER_SHARE // 8 * 8)
    fresh = {"lr": FRESH_RATE, "batch_size": BATCH[kind]}
    trained = fresh | {"lr": RATE}
    penalty = {"mode": "relu_hoyer", "alpha": ALPHA[kind], "epochs": SPARSIFY[kind]}
    routed = {"width": width, "epochs": ROUTER[kind]}
    variants = task.get("variants", VARIANTS)
    found = {
        "dense": filled(TaskTrainingConfig, task.get("dense"), {"epochs": DENSE[kind]} | trained),
        "sparsify": filled(SparsifyConfig, task.get("sparsify"), penalty | trained),
        "clustering": filled(ClusteringConfig, task.get("clustering"), {"expert_size": size}),
        "router": filled(RouterConfig, task.get("router"), routed | fresh),
        "variants": variants,
        "figures": _figures(task.get("figures"), variants),
        "select": _points(task.get("select"), size_of(model.get("d_ff")) // size),
    }
    if _converts_projections(task):
        imitation = {"epochs": _imitation(found["sparsify"])} | fresh
        found |= {
            "projections": filled(ProjectionsConfig, task.get("projections"), imitation),
            "clustering": _with(found["clustering"], projection_expert_size=PROJECTION_EXPERT),
            "router": _with(found["router"], projection_width=width),
        }
    if "select" not in task:
        found["eval_batch_size"] = task.get("eval_batch_size", EVALUATED[kind])
    return found


def filled(options: type[Strict], given: Any, usual: Options) -> Any:
    """A section; the usual options are its own where it is left out, or lacks something."""
    section = {} if given is None else given
    if not isinstance(section, Mapping) or not lacks(options, section):
        return given
    return {**usual, **section}


def lacks(options: type[Strict], section: Options) -> bool:
    """Whether a section leaves out what has to be filled in."""
    return any(options.completes(key) and key not in section for key in options.model_fields)


def size_of(value: Any) -> int:
    """A size, which YAML may have read as text; 1 where it is none, as the checks will say."""
    return max(1, int(value)) if re.fullmatch(r"[0-9]{1,12}", str(value)) else 1


def expert_size(d_ff: int) -> int:
    """The largest that makes at least `EXPERTS` experts, or 1."""
    return max(size for size in divisors(d_ff) if size <= max(1, d_ff // EXPERTS))


def _imitation(sparsify: Any) -> float:
    epochs = str(sparsify.get("epochs")) if isinstance(sparsify, Mapping) else ""
    try:
        return round(IMITATION * float(epochs), 6)
    except ValueError:  # as the checks will say
        return 0.0


def _with(section: Any, **usual: int) -> Any:
    return usual | dict(section) if isinstance(section, Mapping) else section


def _converts_projections(task: Options) -> bool:
    """Whether a variant of any suite does."""
    suites = [task, *(task.get(suite) for suite in SUITES[1:])]
    named = [suite.get("variants") for suite in suites if isinstance(suite, Mapping)]
    variants = [v for names in named if isinstance(names, Mapping) for v in names.values()]
    return any(isinstance(x, Mapping) and x.get("projections") is not None for x in variants)


def _figures(given: Any, variants: Any) -> Any:
    """Figure 4 compares all variants."""
    figures = {} if given is None else given
    if not isinstance(figures, Mapping) or not isinstance(variants, Mapping):
        return given
    return {"tradeoff": list(variants), **figures}


def _points(given: Any, experts: int) -> Any:
    """Operating points of every rule; a task gives its own for those that it cares for."""
    select = {} if given is None else given
    if not isinstance(select, Mapping):
        return given
    return {rule.name: _usual_points(rule, experts) for rule in RULES.values()} | dict(select)


def _usual_points(rule: Rule, experts: int) -> list[float]:
    if rule.whole:
        return [2**n for n in range(experts.bit_length()) if 2**n < experts] + [experts]
    return list(rule.usual)
