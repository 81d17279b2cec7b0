"""The curves of each variant in each resample, from the outcomes of samples.

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

from d2dmoe.bootstrap import over_seeds, sample_counts, sums
from d2dmoe.curve import Curve, curve_of
from d2dmoe.errors import DataError
from d2dmoe.io.read import REMEDY, read
from d2dmoe.tables import FALLING, KEPT

SPLITS = ("validation", "test")
STEP = 0.005  # of the dense cost: between the costs at which curves are kept
LARGEST = 700.0  # nats; e to more than that is no float

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
    ends = (best, value) if falls else (value, best)
    above, below = np.broadcast_arrays(*ends)
    positive = below > 0
    # Of a few samples a resample may hold none that is right: all samples stand in for it.
    related: np.ndarray = np.all(positive, axis=1)
    if not related[0]:
        raise DataError(
            f"seed {seed}: {metric} 0 of {variant if falls else ' and '.join(references)} on the "
            f"{split} samples: nothing is relative to 0. Give the task more of them."
        )
    quality = np.divide(above, below, where=positive, out=np.ones(above.shape))
    return cost / dense_cost, np.where(related[:, None], quality, quality[:1])


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
