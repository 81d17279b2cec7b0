"""What testing a claim gives, and when one curve of quality over cost is better than another."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from d2dmoe.claims.evidence import Evidence
from d2dmoe.tables import BUDGETS

SUPPORTED, CONTRADICTED, NOT_TESTED = "supported", "contradicted", "not tested"
UNMEASURED = "-"
TIE = 0.001  # of the dense quality: smaller differences are no differences


class Finding(NamedTuple):
    """One row of the ledger."""

    measured: str
    verdict: str
    evidence: str
    part: str = ""  # what of the task was tested, where there are several things


def verdict_of(holds: bool) -> str:
    """The verdict of a test that was made."""
    return SUPPORTED if holds else CONTRADICTED


def untested(why: str, part: str = "") -> Finding:
    """The finding where a test cannot be made."""
    return Finding(UNMEASURED, NOT_TESTED, why, part)


def beats(e: Evidence, ours: str, rivals: Sequence[str], note: str) -> Finding:
    """Whether a variant's curve is better than every rival's; see `better` and `gaps`.

    A rival that is not beaten contradicts. Where none does, but one cannot be compared, nothing is
    decided.
    """
    found = {rival: gaps(e, ours, rival) for rival in rivals}
    if not any(found.values()):
        return untested(f"{ours} has no cost in common with {', '.join(rivals)}")
    measured = "; ".join(_differences(ours, rival, own) for rival, own in found.items())
    lost = any(own and not better(list(own.values())) for own in found.values())
    verdict = verdict_of(not lost) if lost or all(found.values()) else NOT_TESTED
    curves = [qualities(e, [ours, *rivals], BUDGETS)]
    curves += [
        qualities(e, [ours, rival], list(own))
        for rival, own in found.items()
        if not set(own) <= set(BUDGETS)
    ]
    return Finding(measured, verdict, "; ".join([*curves, note]))


def gaps(e: Evidence, ours: str, theirs: str) -> dict[float, float]:
    """Differences of the mean quality over seeds, ours minus theirs, by the budget.

    Budgets are the `BUDGETS` that every seed of both can meet. Where there is none (a rival with a
    few dear operating points), they are four equally spaced costs that the rival chose itself, from
    its cheapest to its dearest, as far as ours can meet them. Empty if it can meet none.
    """
    return _at(e, ours, theirs, BUDGETS) or _at(e, ours, theirs, _own_budgets(e, theirs))


def better(differences: Sequence[float]) -> bool:
    """Above somewhere and, but for ties, below nowhere."""
    return max(differences, default=0) > TIE and min(differences) >= -TIE


def qualities(e: Evidence, variants: Sequence[str], budgets: Sequence[float]) -> str:
    """The variants' mean quality over seeds at some budgets, in words; nan: cannot be met."""
    curves = (f"{v}: " + " ".join(f"{e.quality(v, b):.4f}" for b in budgets) for v in variants)
    return f"quality at {_list(budgets)} of the cost: {'; '.join(curves)}"


def _at(e: Evidence, ours: str, theirs: str, budgets: Sequence[float]) -> dict[float, float]:
    found = {b: e.quality(ours, b) - e.quality(theirs, b) for b in budgets}
    return {b: gap for b, gap in found.items() if not np.isnan(gap)}


def _own_budgets(e: Evidence, variant: str) -> list[float]:
    """Costs from a variant's cheapest point, which every seed can pay for, to its dearest."""
    costs = e.points(variant).groupby("seed")["flops_ratio"].agg(["min", "max"])
    low = float(costs["min"].max())
    return list(np.linspace(low, max(low, float(costs["max"].mean())), len(BUDGETS)))


def _differences(ours: str, theirs: str, found: dict[float, float]) -> str:
    if not found:
        return f"{ours} minus {theirs}: no cost in common"
    low, high = min(found.values()), max(found.values())
    text = f"{ours} minus {theirs}: {low:+.2%} to {high:+.2%} of dense quality"
    return text if list(found) == BUDGETS else f"{text}, at {_list(found)} of the cost only"


def _list(budgets: Iterable[float]) -> str:
    return " ".join(f"{b:.3g}" for b in dict.fromkeys(budgets))
