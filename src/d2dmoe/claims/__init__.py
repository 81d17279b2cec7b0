"""The paper's claims, decided by the tables: supported, contradicted, or not tested.

A ledger belongs to one suite of variants. What another suite tests is said to be tested there.
"""

from collections.abc import Callable

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

__all__ = ["COLUMNS", "CONTRADICTED", "NOT_TESTED", "PAPER_SAYS", "SUPPORTED"] + [
    "Evidence",
    "evidence_of",
    "ledger",
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


def ledger(evidence: list[Evidence]) -> list[dict[str, str]]:
    """Rows of `COLUMNS` for the claims C1 … C11: one per task, of C10 one per compressed model;
    claims without any experiment have one row."""
    rows = []
    for claim, says in PAPER_SAYS.items():
        found = [(e.task, f) for e in evidence for f in _findings(claim, e)]
        found = found or [("-", untested("this pipeline has no experiment for it yet"))]
        for task, (measured, verdict, source, part) in found:
            where = f"{task}: {part}" if part else task
            rows.append(
                dict(zip(COLUMNS, (claim, says, where, measured, verdict, source), strict=True))
            )
    return rows


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
