"""What the methods' curves come to, and how they differ, with intervals: from per-sample outcomes.

Quality at a budget is that of the curve through the test points, where its cost is the budget. The
cost of 99 % of the dense quality is another matter: to read it off the test points would choose by
their labels. So the place between two operating points is chosen by the curve through the
validation points, and cost and quality at that place are those of the test points.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2dmoe.bootstrap import RESAMPLES, Estimate, estimate, over_seeds, sample_counts, sums
from d2dmoe.curve import Curve, curve_of
from d2dmoe.errors import DataError
from d2dmoe.io.read import REMEDY, read
from d2dmoe.tables import BUDGETS, ENDS, FALLING, KEPT, RATIOS

SPLITS = ("validation", "test")
STEP = 0.005  # of the dense cost: between the costs at which curves are kept
PLACES = 101  # on the common range of two curves, over which their mean difference is taken
LARGEST = 700.0  # nats; e to more than that is no float
UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))

Points = tuple[np.ndarray, np.ndarray]
"""FLOPs per sample and value of the metric, of each resample: [1 + resamples, points] each."""


@dataclass(frozen=True)
class Profile:
    """The curves of a variant: of each resample and seed."""

    seeds: tuple[int, ...]
    cheapest: float  # cost that all seeds can pay for, of all samples
    dearest: float  # up to which all seeds have points
    quality: np.ndarray  # at costs 0, STEP, …: [1 + resamples, seeds, costs]
    kept: Mapping[str, Points]  # by a name of KEPT: cost and quality, [1 + resamples, seeds]

    def at(self, cost: float, seeds: Sequence[int]) -> np.ndarray:
        """Mean quality of some seeds at a cost: [1 + resamples]."""
        last = self.quality.shape[2] - 1
        place = min(cost / STEP, last)
        low = min(int(round(place, 6)), last)
        part = round(place - low, 6)
        both = self.quality[:, self._columns(seeds), low : low + 2]
        return over_seeds(both[..., 0] * (1 - part) + both[..., -1] * part)

    def keeping(self, name: str, seeds: Sequence[int]) -> Points:
        """Mean cost and mean quality of some seeds where they keep a share of the dense quality."""
        cost, quality = (values[:, self._columns(seeds)] for values in self.kept[name])
        return over_seeds(cost), over_seeds(quality)

    def _columns(self, seeds: Sequence[int]) -> list[int]:
        return [self.seeds.index(seed) for seed in seeds]


# From outcomes to curves.


def read_outcomes(path: Path) -> dict[str, np.ndarray]:
    """The outcomes of each sample, as `evaluation.per_sample` has them.

    Raises:
        DataError: the file is missing or damaged, or an outcome is no number.
    """
    found = read(path)
    points = found["correct"].shape if "correct" in found else ()
    shapes = {"correct": points, "loss": points, "flops": points, "targets": points[1:]}
    whole = len(points) == 2 and {name: x.shape for name, x in found.items()} == shapes
    if not whole or min(points) == 0 or not (found["targets"] >= 1).all():
        raise DataError(f"{path} is damaged: it holds no outcomes of samples. {REMEDY}")
    for name in ("correct", "loss", "flops"):
        wrong = np.argwhere(~np.isfinite(found[name]))
        if len(wrong):
            point, sample = wrong[0]
            raise DataError(
                f"{path}: the {name} of sample {sample} at operating point {point} (both from 0) "
                f"is {found[name][point, sample]}. The model that was measured is broken: train it "
                "anew, at a lower learning rate if it comes again."
            )
    return found


def resampled(outcomes: Mapping[str, np.ndarray], metric: str, counts: np.ndarray) -> Points:
    """Cost and metric of each resample; `counts` say how often each sample is in it."""
    cost = sums(counts, outcomes["flops"]) / counts.sum(1, dtype=np.int64)[:, None]
    total = outcomes["correct"] if metric == "accuracy" else outcomes["loss"]
    mean = sums(counts, total) / sums(counts, outcomes["targets"][None])
    return cost, np.exp(np.minimum(mean, LARGEST)) if metric == "perplexity" else mean


Found = dict[str, dict[int, dict[str, Points]]]
"""Points by variant, seed and split."""


def points_of(entries: Iterable[dict[str, Any]], metric: str, resamples: int) -> tuple[Found, int]:
    """The resampled operating points of all variants and seeds, and the number of test samples.

    Args:
        entries: as `statistics` takes them.
        metric: the task's main one.
        resamples: their number.

    Raises:
        DataError: a file is missing or damaged, or is of other samples than the rest.
    """
    counts: dict[str, np.ndarray] = {}
    found: Found = {}
    for entry in entries:
        for split in SPLITS:
            path = Path(entry[split])
            outcomes = read_outcomes(path)
            samples = len(outcomes["targets"])
            if split not in counts:
                counts[split] = sample_counts(samples, split, resamples)
            if samples != counts[split].shape[1]:
                raise DataError(
                    f"{path} has {samples} samples, the others of the {split} split have "
                    f"{counts[split].shape[1]}: they cannot be compared. {REMEDY}"
                )
            own = found.setdefault(entry["variant"], {}).setdefault(entry["seed"], {})
            more = resampled(outcomes, metric, counts[split])
            own[split] = _beside(own[split], more) if split in own else more
    return found, counts["test"].shape[1]


def _beside(first: Points, second: Points) -> Points:
    """The operating points of one variant from several trainings."""
    return np.hstack([first[0], second[0]]), np.hstack([first[1], second[1]])


def profile(found: Found, variant: str, references: Sequence[str], metric: str) -> Profile:
    """A variant's curves relative to the first reference's cost and the best one's quality.

    Raises:
        DataError: a seed has no reference, or its quality is 0.
    """
    seeds = tuple(sorted(found[variant]))
    relative = {
        seed: {
            split: _relative(found, variant, seed, split, references, metric) for split in SPLITS
        }
        for seed in seeds
    }
    costs = [relative[seed]["test"][0][0] for seed in seeds]  # of all samples
    resamples = len(relative[seeds[0]]["test"][0])
    grid = np.arange(0, max(1.0, max(map(np.max, costs))) + STEP, STEP)
    quality = np.empty((resamples, len(seeds), len(grid)), np.float32)
    kept = {name: (np.empty(quality.shape[:2]), np.empty(quality.shape[:2])) for name in KEPT}
    for column, seed in enumerate(seeds):
        for row in range(resamples):
            validation, test = (_row(relative[seed][split], row) for split in SPLITS)
            curve, chosen_by = curve_of(*test), curve_of(*validation)
            quality[row, column] = curve.quality(grid)
            for name, share in KEPT.items():
                place = _chosen(chosen_by.cost(share), validation[0], test[0], curve)
                kept[name][0][row, column], kept[name][1][row, column] = place
    low, high = max(map(np.min, costs)), min(map(np.max, costs))
    return Profile(seeds, float(low), float(high), quality, kept)


def _row(points: Points, row: int) -> Points:
    return points[0][row], points[1][row]


def _relative(
    found: Found, variant: str, seed: int, split: str, references: Sequence[str], metric: str
) -> Points:
    """Cost and quality as shares of the references', higher being better."""
    missing = [name for name in references if seed not in found.get(name, {})]
    if missing:
        raise DataError(f"{variant}, seed {seed}: no outcomes of {', '.join(missing)} to relate to")
    cost, value = found[variant][seed][split]
    dense_cost = found[references[0]][seed][split][0].min(1, keepdims=True)
    dense = np.hstack([found[name][seed][split][1] for name in references])
    falls = metric in FALLING
    best = (dense.min if falls else dense.max)(axis=1, keepdims=True)
    above, below = (best, value) if falls else (value, best)
    if (below <= 0).any():
        raise DataError(
            f"seed {seed}: {metric} 0 of {variant if falls else ' and '.join(references)} in a "
            f"resample of the {split} samples: nothing is relative to 0. Give the task more."
        )
    return cost / dense_cost, above / below


def _chosen(
    cost: float, validation: np.ndarray, test: np.ndarray, curve: Curve
) -> tuple[float, float]:
    """Cost and quality on test samples at the place that a cost on validation samples has between
    the operating points, whose costs are [points] each. No place: the dearest point's quality."""
    if np.isinf(cost):
        return cost, float(curve.qualities[-1])
    order = np.argsort(validation, kind="stable")
    there = np.interp(cost, validation[order], test[order])
    return float(there), float(curve.quality(there))


# From curves to tables.


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
        Rows of `tables.SUMMARY`: no number where some seed does not reach it, or the interval has
        no end. And rows of `tables.COMPARISON`: see docs/method.md.

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
    for name in KEPT:
        cost, quality = own.keeping(name, own.seeds)
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
    for name, share in KEPT.items():
        costs = [x.keeping(name, seeds)[0] for x in (one, other)]
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
    reached by all samples and seeds."""
    alike = np.isinf(cost) & np.isinf(other)
    found = np.subtract(cost, other, where=~alike, out=np.zeros_like(cost))
    found[0] = cost[0] - other[0] if np.isfinite([cost[0], other[0]]).all() else np.nan
    return found


def _on_top(own: Profile) -> list[dict[str, Any]]:
    """Of a conversion, relative to the compressed model that it converts: the share of its FLOPs
    that is saved at 99 % of its quality, and what is then kept of it."""
    cost, quality = own.keeping("99", own.seeds)
    cost[0] = cost[0] if np.isfinite(cost[0]) else np.nan
    rows = [("saved", 0.99, 1 - cost, 1), ("kept", 0.99, quality - 0.99, 1)]
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
