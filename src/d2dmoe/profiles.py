"""The curves of each variant in each resample, from the outcomes of samples.

Quality at a budget is that of the curve through the test points, where its cost is the budget. The
cost of 99 % of the dense quality is another matter: to read it off the test points would choose by
their labels. So the budget is chosen by the curves through the validation points, where their mean
over the seeds keeps 99 %: one budget for all seeds, as one would set it for a method, and no seed
with an unlucky validation sample decides. Cost and quality there are those of the test points.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2dmoe.bootstrap import over_seeds, sample_counts, sums
from d2dmoe.curve import quality_at
from d2dmoe.errors import DataError
from d2dmoe.io.read import REMEDY, read
from d2dmoe.tables import FALLING

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
    chosen_by: np.ndarray  # quality on validation samples at budgets that rise: the same shape
    cost_then: np.ndarray  # on test samples, at each of these budgets
    quality_then: np.ndarray  # this too

    def at(self, cost: float, seeds: Sequence[int]) -> np.ndarray:
        """Mean quality of some seeds at a cost: [1 + resamples]."""
        last = self.quality.shape[2] - 1
        place = min(cost / STEP, last)
        low = min(int(round(place, 6)), last)
        part = round(place - low, 6)
        both = self.quality[:, self._columns(seeds), low : low + 2]
        return over_seeds(both[..., 0] * (1 - part) + both[..., -1] * part)

    def keeping(self, share: float, seeds: Sequence[int]) -> Points:
        """Mean cost and mean quality of some seeds, [1 + resamples] each, at the least budget with
        which they keep, on the mean of their validation curves, a share of the dense quality.
        Infinite where none does; the quality is then that of the largest budget."""
        columns = self._columns(seeds)
        rising = over_seeds(self.chosen_by[:, columns])
        place = np.array([_first(row, share) for row in rising])
        cost, quality = (
            _read(over_seeds(values[:, columns]), place)
            for values in (self.cost_then, self.quality_then)
        )
        return np.where(np.isinf(place), np.inf, cost), quality

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
    budgets = _budgets([relative[seed]["validation"][0][0] for seed in seeds])
    quality = np.empty((resamples, len(seeds), len(grid)), np.float32)
    at_budgets = np.empty((3, resamples, len(seeds), len(budgets)), np.float32)
    for column, seed in enumerate(seeds):
        validation, test = (relative[seed][split] for split in SPLITS)
        cost = _same_places(budgets, validation[0], test[0])
        chosen_by = quality_at(budgets, *validation)
        quality[:, column] = quality_at(grid, *test)
        at_budgets[:, :, column] = chosen_by, cost, quality_at(cost, *test)
    low, high = max(map(np.min, costs)), min(map(np.max, costs))
    return Profile(seeds, float(low), float(high), quality, *at_budgets)


def _budgets(costs: Sequence[np.ndarray]) -> np.ndarray:
    """From the least that all seeds can meet to the dearest point of any, in steps of about STEP;
    `costs` are each seed's points'."""
    low, high = max(map(np.min, costs)), max(map(np.max, costs))
    return np.linspace(low, high, 1 + int(np.ceil((high - low) / STEP)))


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


def _same_places(costs: np.ndarray, validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The costs on test samples at the places that costs on validation samples have between the
    operating points, whose costs are [1 + resamples, points] each."""
    order = np.argsort(validation, axis=1, kind="stable")
    ordered = (np.take_along_axis(x, order, axis=1) for x in (validation, test))
    return np.array([np.interp(costs, *row) for row in zip(*ordered, strict=True)])


def _first(rising: np.ndarray, share: float) -> float:
    """The place, between two indices, from which values that do not fall reach a share; infinite if
    they do not."""
    index = int(np.searchsorted(rising, share))
    if index == len(rising):
        return np.inf
    if index == 0:
        return 0.0
    before, after = rising[index - 1 : index + 1]
    return index - 1 + float((share - before) / (after - before))


def _read(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of each row of [rows, columns] the value at a place between two columns; the last beyond."""
    columns = np.arange(values.shape[1])
    return np.array([np.interp(p, columns, row) for p, row in zip(places, values, strict=True)])
