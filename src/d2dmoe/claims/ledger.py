"""The ledger: each claim's findings as rows of a table.

A ledger belongs to one suite of variants. What another suite tests is said to be tested there. The
benchmarks have a ledger of their own.
"""

from collections.abc import Iterable

import pandas as pd

from d2dmoe.claims import CLAIMS, Claim
from d2dmoe.claims.evidence import Evidence
from d2dmoe.claims.findings import UNMEASURED, Finding, untested
from d2dmoe.claims.wall_clock import layer_time
from d2dmoe.lookup import resolve

COLUMNS = ["claim", "paper_says", "where", "measured", "verdict", "evidence"]

OWN = "data or weights of one's own, no experiment of the paper; claims: true in the task judges it"

TARGETS = {"main": "all"}  # what makes a suite, where it is not called like it


def ledger(
    evidence: list[Evidence], claims: Iterable[Claim] = CLAIMS.values()
) -> list[dict[str, str]]:
    """Rows of `COLUMNS` for the claims: one or more per task; claims without any experiment have
    one row."""
    rows = []
    for claim in claims:
        found = [(e.task, f) for e in evidence for f in _findings(claim, e)]
        rows += [_row(claim, *place) for place in found or [("-", untested(claim.untested))]]
    return rows


def wall_clock_ledger(tables: list[pd.DataFrame]) -> list[dict[str, str]]:
    """Rows of `COLUMNS` for the claim on wall-clock time, one per table of timed layers."""
    return [_row(CLAIMS["C9"], "layer", layer_time(table)) for table in tables]


def _row(claim: Claim, place: str, finding: Finding) -> dict[str, str]:
    measured, verdict, source, part = finding
    where = f"{place}: {part}" if part else place
    values = (claim.name, claim.paper_says, where, measured, verdict, source)
    return dict(zip(COLUMNS, values, strict=True))


def _findings(claim: Claim, e: Evidence) -> list[Finding]:
    if claim.test is None:
        return []
    if not e.judged:
        return [untested(OWN)]
    return [_elsewhere(claim, e, finding) for finding in resolve(claim.test)(e)]


def _elsewhere(claim: Claim, e: Evidence, finding: Finding) -> Finding:
    """Say which target tests what could not be tested here."""
    suites = (s for s, figures in e.elsewhere.items() if set(claim.figures) & set(figures))
    suite = next(suites, None)
    if suite is None or finding.measured != UNMEASURED:
        return finding
    target = TARGETS.get(suite, suite)
    return finding._replace(evidence=f"{finding.evidence}; snakemake {target} tests it")
