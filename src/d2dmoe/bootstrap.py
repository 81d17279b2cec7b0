"""Intervals of 95 % by a bootstrap over seeds and test samples.

All methods and seeds are measured on the same samples. So a resample draws samples once for all of
them, and seeds once for all methods: differences are paired, and what the seeds have in common, the
test set, is not taken for chance that averages out (Owen, The pigeonhole bootstrap, 2007). Of S
seeds S - 1 are drawn, without which the variance of few seeds comes out as (S - 1) / S of what it
is (Rao and Wu, 1988). Of one seed nothing is drawn: the interval is of the samples alone.

The first of all resamples is no resample: each sample and seed once. Its value is the estimate.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
OUTSIDE = 0.025  # of the resamples, below an interval, and as many above
CHUNK = 100  # resamples at a time: bounds the memory


class Estimate(NamedTuple):
    """A number with its interval; an end may be infinite."""

    value: float
    low: float
    high: float

    def __neg__(self) -> "Estimate":
        return Estimate(-self.value, -self.high, -self.low)


def estimate(values: np.ndarray) -> Estimate:
    """The first value, and the interval of the others: [1 + RESAMPLES]."""
    low, high = (  # of resamples, as nothing can be had between infinities; the same from both ends
        sign * np.quantile(sign * values[1:], OUTSIDE, method="inverted_cdf") for sign in (1, -1)
    )
    return Estimate(float(values[0]), float(low), float(high))


def sample_counts(samples: int, split: str, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each sample of a split is drawn: uint16 [1 + resamples, samples], ones first."""
    rng = np.random.default_rng(list(split.encode()))
    drawn = (rng.integers(samples, size=samples) for _ in range(resamples))
    counts = (np.bincount(chosen, minlength=samples).astype(np.uint16) for chosen in drawn)
    return np.stack([np.ones(samples, np.uint16), *counts])


def seed_weights(seeds: int, resamples: int = RESAMPLES) -> np.ndarray:
    """The weight of each seed in a mean: float64 [1 + resamples, seeds], equal ones first."""
    equal = np.full((1, seeds), 1 / seeds)
    if seeds == 1:
        return np.ones((1 + resamples, 1))
    drawn = np.random.default_rng(seeds).multinomial(seeds - 1, equal[0], size=resamples)
    return np.concatenate([equal, drawn / (seeds - 1)])


def sums(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of each resample [resamples, samples] the sums over samples of values [points, samples]:
    float64 [resamples, points]."""
    columns = values.astype(np.float64).T
    chunks = (counts[i : i + CHUNK] for i in range(0, len(counts), CHUNK))
    return np.concatenate([chunk.astype(np.float64) @ columns for chunk in chunks])


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Of each resample the mean over the seeds that it drew: [resamples, seeds, …] to [resamples,
    …]."""
    weights = seed_weights(values.shape[1], len(values) - 1)
    return np.einsum("rs,rs...->r...", weights, values)
