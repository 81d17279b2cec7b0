"""What caches of all sizes would miss on recorded selections: one pass counts them all."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from d2dmoe.offloading.cache import ranked, used_last
from d2dmoe.offloading.recording import Recording


class Misses(NamedTuple):
    """Of one layer's caches of 0 … n experts, over all recorded tokens."""

    uses: int  # experts that tokens used, whatever the cache
    misses: np.ndarray  # int64 [n + 1]: uses of experts that the cache did not hold; does not rise
    fetched: np.ndarray  # int64 [n + 1]: experts that were fetched ahead
    order: list[int]  # of the experts at the beginning: those that most tokens used first


@dataclass
class _Counts:
    """Numbers by a range of sizes, both ends within it."""

    steps: np.ndarray

    def add(self, first: int, last: int) -> None:
        if first <= last:
            self.steps[first] += 1
            self.steps[last + 1] -= 1

    def by_size(self) -> np.ndarray:
        return self.steps.cumsum()[:-1]


def count_misses(used: Tensor, expected: Tensor | None = None) -> Misses:
    """Count the misses of one layer, token by token.

    Args:
        used: bool [tokens, n].
        expected: what is fetched ahead of each token, bool [tokens, n]; None: nothing.
    """
    n = used.shape[1]
    begin = order = used_last(range(n), ranked(used.sum(0).tolist()))
    misses, fetched = (_Counts(np.zeros(n + 2, np.int64)) for _ in range(2))
    for token in range(len(used)):
        if expected is not None:
            places = {expert: place for place, expert in enumerate(order)}
            ahead = ranked(expected[token].tolist())
            for place, expert in enumerate(ahead):  # of a size that it then is in, and was not
                fetched.add(place + 1, places[expert])
            order = used_last(order, ahead)
        chosen = set(ranked(used[token].tolist()))
        for place, expert in enumerate(order):
            if expert in chosen:
                misses.add(0, place)
        order = used_last(order, sorted(chosen))
    return Misses(int(used.sum()), misses.by_size(), fetched.by_size(), begin)


def misses_of(recording: Recording, prefetch: bool) -> dict[str, Misses]:
    """The misses of each layer, by name; with `prefetch`, what the layer before expects is fetched
    ahead."""
    expected = recording.expected if prefetch else {}
    return {name: count_misses(used, expected.get(name)) for name, used in recording.used.items()}
