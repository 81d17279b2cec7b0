"""How the memory for experts is divided among the layers, so that least is missed."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def divide(misses: Sequence[np.ndarray], total: int) -> list[int]:
    """The sizes of the layers' caches of least misses in all, by dynamic programming.

    Layer by layer, the least misses within each budget are the least over the sizes of its cache,
    of its own misses and those of the layers before within what is left. Nothing is assumed of the
    shape of the misses. Of equals the larger cache is taken.

    Args:
        misses: of each layer, for caches of 0 … n experts, [n + 1].
        total: experts that all caches together may hold, 0 at least.

    Returns:
        A size for each layer; together `total`, or all experts where these are fewer.
    """
    best, choices = np.zeros(total + 1), []  # best[b]: of the layers so far, within b experts
    for own in misses:
        before = np.concatenate([np.full(len(own) - 1, np.inf), best])
        left = sliding_window_view(before, len(own))  # [total + 1, n + 1]: best[b - n] … best[b]
        sums = left + np.asarray(own)[::-1]
        choice = sums.argmin(1)
        best = sums[np.arange(total + 1), choice]
        choices.append(len(own) - 1 - choice)
    sizes, budget = [], total
    for choice in reversed(choices):
        sizes.append(int(choice[budget]))
        budget -= sizes[-1]
    return sizes[::-1]


def alike(experts: Sequence[int], total: int) -> list[int]:
    """Sizes that hold the same share of each layer's experts, together at most `total`."""
    everything = sum(experts)
    share = min(1.0, total / everything)
    sizes = [int(share * n) for n in experts]
    for layer in range(len(sizes)):  # what rounding left
        if sum(sizes) < min(total, everything) and sizes[layer] < experts[layer]:
            sizes[layer] += 1
    return sizes
