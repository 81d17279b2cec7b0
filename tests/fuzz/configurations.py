"""Damaged configurations, planned as the workflow plans them."""

import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mutations import damaged, mutated

from d2dmoe.config.task import SUITES
from d2dmoe.extensions import import_extensions
from d2dmoe.plan import benchmarks, claims, tables
from d2dmoe.plan.plan import Plan, lineage_of, load_plan, options_of

os.environ["HF_HUB_OFFLINE"] = "1"  # what is left out of a model is not asked of the hub

ROOT = Path(__file__).parents[2]
SHIPPED = ("config.yaml", "configs/paper.yaml", "tests/workflow/tiny.yaml")
SHORT = """
seeds: [0]
tasks:
  short:
    data: {source: "vendored:fashion-mnist"}
    model: {weights: "torchvision:vit_b_16:IMAGENET1K_V1", heads: 12}
    sparsify: {epochs: 2}
    clustering: {expert_size: 64}
    variants: {attention: {method: d2dmoe, label: attention too, projections: {}}}
"""  # what weights say is left out
AS_TEXT = 0.15  # share of the cases whose YAML itself is damaged


@cache
def _texts() -> tuple[str, ...]:
    return *((ROOT / path).read_text(encoding="utf-8") for path in SHIPPED), SHORT


@cache
def _trees() -> tuple[Any, ...]:
    return tuple(map(yaml.safe_load, _texts()))


def case(rng: random.Random, _folder: Path) -> Callable[[], object] | None:
    """A call that plans a damaged configuration; None where the damage left no YAML."""
    number = rng.randrange(len(_texts()))
    if rng.random() < AS_TEXT:
        try:
            text = damaged(_texts()[number].encode(), rng).decode()
            raw = yaml.safe_load(text)
        except (UnicodeDecodeError, ValueError, yaml.YAMLError):
            return None
    else:
        raw = mutated(_trees()[number], rng)
    return lambda: plan(raw)


def plan(raw: Any) -> None:
    """All that the rules ask of the plan before the first job."""
    if isinstance(raw, dict):
        import_extensions(raw)
    made = load_plan(raw, ROOT)
    tables.all_results(made)
    tables.models(made)
    for suite in SUITES:
        _suite(made, suite)
    for step in made.steps.values():
        options_of(step), lineage_of(step)
    for table in benchmarks.tables(made):
        benchmarks.entries(made, table)
    benchmarks.results(made)
    if made.config.benchmarks.masks:
        benchmarks.masks_line(made)


def _suite(made: Plan, suite: Any) -> None:
    tables.suite_results(made, suite)
    claims.claim_tables(made, suite)
    claims.claim_options(made, suite)
    for task in made.tasks_of(suite):
        for gathered in (tables.points, tables.layers, tables.activity):
            gathered(made, suite, task)
    for task, cfg in made.config.tasks.items():
        if cfg.tuning:
            tables.tuning(made, task)
        tables.fairness(made, task)
