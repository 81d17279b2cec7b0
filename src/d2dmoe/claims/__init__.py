"""The paper's claims, decided by the tables: supported, contradicted, or not tested.

A ledger belongs to one suite of variants. What another suite tests is said to be tested there. The
benchmarks have a ledger of their own.
"""

from collections.abc import Callable

import pandas as pd

from d2dmoe.claims.comparisons import baselines, expert_sizes, router_targets, sparser_bases
from d2dmoe.claims.evidence import Evidence, evidence_of
from d2dmoe.claims.findings import (
    CONTRADICTED,
    NOT_TESTED,
    SUPPORTED,
    UNMEASURED,
    Finding,
    untested,
)
from d2dmoe.claims.savings import attention_projections, compressed_models, inference_cost
from d2dmoe.claims.tokens import dynamic_selection, where_compute_goes
from d2dmoe.claims.wall_clock import layer_time

__all__ = ["COLUMNS", "CONTRADICTED", "NOT_TESTED", "PAPER_SAYS", "SUPPORTED"] + [
    "Evidence",
    "evidence_of",
    "ledger",
    "wall_clock_ledger",
]

COLUMNS = ["claim", "paper_says", "where", "measured", "verdict", "evidence"]

PAPER_SAYS = {
    "C1": "up to 60 % lower inference cost with no significant loss (>= 99 % of dense quality)",
    "C2": "better than MoEfication, ZTW and A-ViT across budgets",
    "C3": "a sparser base model gives a better conversion, at any budget",
    "C4": "active neurons vary much between tokens, and dynamic-k beats static top-k",
    "C5": "regressing output norms beats MoEfication's classification router",
    "C6": "converting attention projections saves more on top",
    "C7": "compute goes to the object in an image, and differs by layer",
    "C8": "smaller experts are better per FLOP; ReLU and GELU bases both work",
    "C9": "a layer's wall-clock time falls linearly with its executed experts",
    "C10": "it combines with pruning, quantisation and distillation",
    "C11": "Gemma-2B keeps most of its BoolQ score down to 70 % of the compute",
}

TESTS: dict[str, Callable[[Evidence], Finding]] = {  # C10 has a finding for every base
    "C1": inference_cost,
    "C2": baselines,
    "C3": sparser_bases,
    "C4": dynamic_selection,
    "C5": router_targets,
    "C6": attention_projections,
    "C7": where_compute_goes,
    "C8": expert_sizes,
}
FIGURES = {  # whose variants a claim compares
    "C1": ["tradeoff"],
    "C2": ["tradeoff"],
    "C3": ["sparsity_levels", "base_sparsity"],
    "C4": ["selection_rules"],
    "C5": ["routers"],
    "C6": ["tradeoff", "phases"],
    "C7": ["load_maps"],
    "C8": ["expert_sizes"],
    "C10": ["pruned", "quantized", "distilled"],
}
TARGETS = {"main": "all"}  # what makes a suite, where it is not called like it
OTHERS = {"C9": "snakemake benchmarks tests it"}  # claims that no suite of variants tests


def ledger(evidence: list[Evidence]) -> list[dict[str, str]]:
    """Rows of `COLUMNS` for the claims C1 … C11: one per task, of C10 one per compressed model;
    claims without any experiment have one row."""
    rows = []
    for claim in PAPER_SAYS:
        found = [(e.task, f) for e in evidence for f in _findings(claim, e)]
        missing = OTHERS.get(claim, "this pipeline has no experiment for it yet")
        rows += [_row(claim, *of) for of in found or [("-", untested(missing))]]
    return rows


def wall_clock_ledger(tables: list[pd.DataFrame]) -> list[dict[str, str]]:
    """Rows of `COLUMNS` for C9, one per table of timed layers."""
    return [_row("C9", "layer", layer_time(table)) for table in tables]


def _row(claim: str, place: str, finding: Finding) -> dict[str, str]:
    measured, verdict, source, part = finding
    where = f"{place}: {part}" if part else place
    values = (claim, PAPER_SAYS[claim], where, measured, verdict, source)
    return dict(zip(COLUMNS, values, strict=True))


def _findings(claim: str, e: Evidence) -> list[Finding]:
    if claim not in FIGURES:
        return []
    found = compressed_models(e) if claim == "C10" else [TESTS[claim](e)]
    return [_elsewhere(claim, e, finding) for finding in found]


def _elsewhere(claim: str, e: Evidence, finding: Finding) -> Finding:
    """Say which target tests what could not be tested here."""
    suites = (s for s, figures in e.elsewhere.items() if set(FIGURES[claim]) & set(figures))
    suite = next(suites, None)
    if suite is None or finding.measured != UNMEASURED:
        return finding
    target = TARGETS.get(suite, suite)
    return finding._replace(evidence=f"{finding.evidence}; snakemake {target} tests it")
