"""What the methods' curves come to, and how they differ, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from d2dmoe.bootstrap import RESAMPLES, Estimate, estimate
from d2dmoe.profiles import Profile, points_of, profile
from d2dmoe.tables import BUDGETS, ENDS, KEPT, RATIOS

PLACES = 101  # on the common range of two curves, over which their mean difference is taken
UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


def statistics(
    entries: Sequence[dict[str, Any]],
    metric: str,
    pairs: Iterable[tuple[str, str]] = (),
    bases: Mapping[str, Mapping[str, Any]] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The summary of each variant's curve, and how variants differ, of one task.

    Args:
        entries: dicts task, method, variant, seed, `reference`: whether the others are relative to
            it, and the paths `validation` and `test` of its outcomes; several of one variant and
            seed are trainings with an operating point each.
        metric: the task's main one.
        pairs: the variants that are compared.
        bases: compressed models, as for `claims.evidence.evidence_of`.
        resamples: of the bootstrap.

    Returns:
        Rows of `tables.SUMMARY`: no number where the mean of the seeds keeps less than 99 %, some
        seed cannot meet the budget, or the interval has no end. And rows of `tables.COMPARISON`:
        see docs/method.md.

    Raises:
        DataError: outcomes are missing, damaged or no numbers, or nothing is relative to them.
    """
    found, samples = points_of(entries, metric, resamples)
    references = list(dict.fromkeys(e["variant"] for e in entries if e["reference"]))
    profiles = {name: profile(found, name, references, metric) for name in found}
    methods = {entry["variant"]: entry["method"] for entry in entries}
    common = {"task": entries[0]["task"], "metric": metric, "samples": samples}
    summary = [
        {"method": methods[name], "variant": name, "seeds": len(own.seeds)}
        | common
        | _measures(own)
        for name, own in profiles.items()
    ]
    differences = [
        {"variant": one, "rival": other} | common | row
        for one, other in pairs
        if {one, other} <= profiles.keys()
        for row in _differences(profiles[one], profiles[other])
    ]
    for base, about in (bases or {}).items():
        rivals = list(dict.fromkeys([base, *about["references"]]))
        if {about["converted"], *rivals} <= found.keys():
            own = profile(found, about["converted"], rivals, metric)
            names = {"variant": about["converted"], "rival": base}
            differences += [names | common | row for row in _on_top(own)]
    return summary, differences


def _measures(own: Profile) -> dict[str, float]:
    measures: dict[str, float] = {}
    for name, share in KEPT.items():
        cost, quality = own.keeping(share, own.seeds)
        reached = bool(np.isfinite(cost[0]))
        measures |= _cells(f"flops_ratio_at_{name}", estimate(cost) if reached else UNKNOWN)
        measures |= _cells(f"quality_at_{name}", estimate(quality))
    for ratio in RATIOS:
        met = own.cheapest <= ratio
        found = estimate(own.at(ratio, own.seeds)) if met else UNKNOWN
        measures |= _cells(f"quality_at_{ratio}", found)
    return measures


def _cells(name: str, found: Estimate) -> dict[str, float]:
    values = (value if np.isfinite(value) else float("nan") for value in found)
    return {f"{name}{end}": value for end, value in zip(ENDS, values, strict=True)}


def _differences(one: Profile, other: Profile) -> list[dict[str, Any]]:
    """Of two variants, of the seeds that both have."""
    seeds = [seed for seed in one.seeds if seed in other.seeds]
    if not seeds:
        return []
    low, high = max(one.cheapest, other.cheapest), min(one.dearest, other.dearest)

    def gap(cost: float) -> np.ndarray:
        return one.at(cost, seeds) - other.at(cost, seeds)

    rows = [("quality", cost, gap(cost), 1) for cost in _budgets(low, high)]
    if low < high:
        mean = np.mean([gap(cost) for cost in np.linspace(low, high, PLACES)], axis=0)
        rows.append(("mean quality", low, mean, 1))
    for share in KEPT.values():
        costs = [x.keeping(share, seeds)[0] for x in (one, other)]
        rows.append(("cost", share, _less(*costs), -1))
    return [_row_of(*row, len(seeds)) for row in rows]


def _budgets(low: float, high: float) -> list[float]:
    """Where two curves are compared: the BUDGETS that both can meet. Where there is none, as of a
    rival with a few dear points, four costs that are equally spaced on their common range."""
    met = [budget for budget in BUDGETS if budget >= low]
    if met or low > high:
        return met
    return list(dict.fromkeys(np.linspace(low, high, len(BUDGETS)).tolist()))


def _less(cost: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Differences of costs; two that are both never reached are alike. No number where not both are
    reached by all samples."""
    alike = np.isinf(cost) & np.isinf(other)
    found = np.subtract(cost, other, where=~alike, out=np.zeros_like(cost))
    found[0] = cost[0] - other[0] if np.isfinite([cost[0], other[0]]).all() else np.nan
    return found


def _on_top(own: Profile) -> list[dict[str, Any]]:
    """Of a conversion, relative to the compressed model that it converts: the share of its FLOPs
    that is saved at 99 % of its quality, and what is then kept of it."""
    cost, quality = own.keeping(KEPT["99"], own.seeds)
    cost[0] = cost[0] if np.isfinite(cost[0]) else np.nan
    rows = [("saved", KEPT["99"], 1 - cost, 1), ("kept", KEPT["99"], quality - KEPT["99"], 1)]
    return [_row_of(*row, len(own.seeds)) for row in rows]


def _row_of(measure: str, at: float, values: np.ndarray, better: int, seeds: int) -> dict[str, Any]:
    found = UNKNOWN if np.isnan(values[0]) else estimate(values)
    cells = _cells("difference", found)
    ends = {"low": cells["difference_low"], "high": cells["difference_high"]}
    row = {"measure": measure, "at": at, "difference": found.value} | ends
    return row | {"verdict": _verdict(found if better > 0 else -found), "seeds": seeds}


def _verdict(found: Estimate) -> str:
    if np.isnan(found.value):
        return "not reached"
    if found.low > 0:
        return "better"
    return "worse" if found.high < 0 else "undecided"
