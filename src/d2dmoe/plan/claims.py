"""Which tables and variants a suite's claims are decided by."""

from typing import Any

from d2dmoe.config.task import SUITES, Suite
from d2dmoe.config.variant import FINETUNED, Variant
from d2dmoe.methods import METHODS
from d2dmoe.plan.figures import table_path
from d2dmoe.plan.folders import plain
from d2dmoe.plan.plan import Plan
from d2dmoe.plan.tables import pairs, task_tables
from d2dmoe.plan.variants import bases_of, has_experts, variants_of


def claim_tables(plan: Plan, suite: Suite) -> dict[str, str]:
    """The tables by their names."""
    names = {name for task in plan.tasks_of(suite) for name in task_tables(plan, suite, task)}
    names -= {"reference", "fairness", "wall_times", "neighbours", "token_load"}
    return {name: table_path(suite, name) for name in sorted(names)}


def statistics_options(plan: Plan, suite: Suite, task: str) -> dict[str, Any]:
    """What is compared by the outcomes of samples; see `significance.statistics`."""
    return {
        "metric": plan.task(task).data.metrics[0],
        "pairs": [list(pair) for pair in pairs(plan, suite, task)],
        "bases": _compressed_bases(plan, suite, task),
    }


def claim_options(plan: Plan, suite: Suite) -> dict[str, dict[str, Any]]:
    """Which variants the claims compare, by task; see `claims.evidence_of`."""
    return {
        task: {
            "bases": _compressed_bases(plan, suite, task),
            "elsewhere": _drawn_elsewhere(plan, suite, task),
            "figures": plain(plan.task(task).figures_of(suite)),
            "judged": plan.task(task).judged,
            "metric": plan.task(task).data.metrics[0],
            "projections": _with_projections(plan, suite, task),
        }
        for task in sorted(plan.tasks_of(suite))
    }


def _with_projections(plan: Plan, suite: Suite, task: str) -> list[str]:
    """The variants whose attention projections are converted."""
    cfg = plan.task(task)
    names = variants_of(cfg, suite)
    return [x for x in names if getattr(cfg.all_variants[x], "projections", None) is not None]


def _compressed_bases(plan: Plan, suite: Suite, task: str) -> dict[str, dict[str, Any]]:
    """By compressed model: the variant that converts it, and the models that it stands beside."""
    cfg = plan.task(task)
    variants = {name: cfg.all_variants[name] for name in variants_of(cfg, suite)}
    ours = {
        name: variant
        for name, variant in variants.items()
        if has_experts(cfg, name) and METHODS[variant.method].role == "ours"
    }
    found = {}
    for base in bases_of(cfg, suite):
        converted = [
            name for name, variant in ours.items() if getattr(variant, "base", None) == base
        ]
        if converted:
            references = [base, f"{base}{FINETUNED}"]
            found[base] = {"converted": converted[-1], "references": references}
    for name, variant in variants.items():
        if METHODS[variant.method].role == "reference":  # the dense model in fewer bits
            converted = [x for x in ours if _bits(ours[x]) == _bits(variant)]
            if converted:
                found[name] = {"converted": converted[-1], "references": [name]}
    return found


def _bits(variant: Variant) -> str | None:
    """What a variant's weights are quantised to."""
    return getattr(variant, "quantize", None)


def _drawn_elsewhere(plan: Plan, suite: Suite, task: str) -> dict[str, list[str]]:
    """By other suite: the keys of the figures that it draws of a task."""
    figures = {other: plan.task(task).figures_of(other) for other in SUITES if other != suite}
    return {
        other: sorted([*own.of_figures(), *(["labels"] if own.labels else [])])
        for other, own in figures.items()
        if own
    }
