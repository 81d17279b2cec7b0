"""What testing a claim gives, and when one curve of quality over cost is better than another."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from d2dmoe.bootstrap import Estimate
from d2dmoe.claims.evidence import KEPT, Evidence

SUPPORTED, CONTRADICTED = "supported", "contradicted"
UNDECIDED, NOT_TESTED = "undecided", "not tested"
UNMEASURED = "-"


class Finding(NamedTuple):
    """One row of the ledger."""

    measured: str
    verdict: str
    evidence: str
    part: str = ""  # what of the task was tested, where there are several things


def verdict_of(holds: bool) -> str:
    """The verdict of a test that leaves nothing to chance."""
    return SUPPORTED if holds else CONTRADICTED


def above(found: Estimate, margin: float = 0.0) -> str:
    """The verdict on a number that is to exceed a margin: undecided while its interval holds it."""
    if found.low > margin:
        return SUPPORTED
    return CONTRADICTED if found.high < margin else UNDECIDED


def across(found: Collection[Estimate]) -> str:
    """The verdict on differences at several budgets: above 0 somewhere and below 0 nowhere."""
    verdicts = {above(difference) for difference in found}
    order = (CONTRADICTED, SUPPORTED, UNDECIDED)
    return next((verdict for verdict in order if verdict in verdicts), NOT_TESTED)


def all_of(verdicts: Collection[str]) -> str:
    """The verdict on a claim all of whose parts are to hold."""
    order = (CONTRADICTED, UNDECIDED, NOT_TESTED)
    return next((verdict for verdict in order if verdict in verdicts), SUPPORTED)


def untested(why: str, part: str = "") -> Finding:
    """The finding where a test cannot be made."""
    return Finding(UNMEASURED, NOT_TESTED, why, part)


def beats(e: Evidence, ours: str, rivals: Sequence[str], note: str) -> Finding:
    """Whether a variant's curve is better than every rival's; see `across`."""
    found = {rival: e.differences(ours, rival, "quality") for rival in rivals}
    if not any(found.values()):
        return untested(f"{ours} has no cost in common with {', '.join(rivals)}")
    measured = "; ".join(gaps(ours, rival, own) for rival, own in found.items())
    verdict = all_of([across(own.values()) for own in found.values()])
    compared = [ours, *(rival for rival, own in found.items() if own)]
    return Finding(measured, verdict, f"comparisons.csv, {resampling(e, compared)}; {note}")


def not_below(found: Estimate, margin: float) -> str:
    """The verdict on a number that is not to fall below a margin: supported but where it does."""
    return CONTRADICTED if found.high < margin else SUPPORTED


def falls_short(kept: Estimate, whose: str = "dense") -> tuple[str, str]:
    """What is said where 99 % are never kept, and the verdict, by the most that is."""
    text = f"99 % of {whose} quality are never kept by validation samples"
    text += f"; test samples keep {share(kept)} at best"
    return text, CONTRADICTED if kept.high < KEPT else UNDECIDED


def gaps(ours: str, rival: str, found: dict[float, Estimate]) -> str:
    """Differences of the quality at budgets, in words."""
    if not found:
        return f"{ours} minus {rival}: no cost in common"
    differences = ", ".join(shown(difference) for difference in found.values())
    return f"{ours} minus {rival} at {_list(found)} of the cost: {differences} of dense quality"


def shown(found: Estimate) -> str:
    """A difference with its interval."""
    return _with_interval(found, "+.2%")


def share(found: Estimate) -> str:
    """A share with its interval."""
    return _with_interval(found, ".1%")


def _with_interval(found: Estimate, form: str) -> str:
    """In words; an end that is not reached is …, as in the tables that people read."""
    low, high = (format(end, form) if np.isfinite(end) else "…" for end in found[1:])
    return f"{found.value:{form}} [{low}, {high}]"


def resampling(e: Evidence, variants: Sequence[str]) -> str:
    """What the intervals are of: the seeds that all of these variants have."""
    seeds = e.seeds(variants)
    drawn = f"{seeds} seeds and all test samples" if seeds > 1 else "all test samples of one seed"
    note = "" if seeds > 1 else "; seeds are not resampled, so other seeds may decide otherwise"
    return f"95 % by a paired bootstrap over {drawn}{note}"


def _list(budgets: Iterable[float]) -> str:
    return " ".join(f"{b:.3g}" for b in budgets)
