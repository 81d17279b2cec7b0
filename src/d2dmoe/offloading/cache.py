"""Which experts of a layer the device holds: those that were used last.

Caches of all sizes are one order of the experts, the last used one first: a cache of C experts
holds the first C. So a larger one holds all that a smaller one does. A call of the layer uses all
of its experts at once; those that more of its tokens chose come first afterwards. What is fetched
ahead counts as used.
"""

from collections.abc import Sequence


def ranked(counts: Sequence[int]) -> list[int]:
    """The experts that tokens chose, those of most tokens first; `counts` are tokens by expert."""
    chosen = [expert for expert, count in enumerate(counts) if count]
    return sorted(chosen, key=lambda expert: -counts[expert])


def used_last(order: Sequence[int], experts: Sequence[int]) -> list[int]:
    """The order after some experts were used, of which the first comes first."""
    used = set(experts)
    return [*experts, *(expert for expert in order if expert not in used)]


class ExpertCache:
    """The experts that one layer has on the device, and the slots in which they lie."""

    def __init__(self, size: int, order: Sequence[int]):
        """`size` slots, 0 at least; `order` is that of all experts, the first of which it holds."""
        self.size, self.order = size, list(order)
        self.slots = {expert: slot for slot, expert in enumerate(self.order[:size])}

    def missing(self, experts: Sequence[int]) -> list[int]:
        """Those of some experts that it does not hold."""
        return [expert for expert in experts if expert not in self.slots]

    def admit(self, experts: Sequence[int]) -> dict[int, int]:
        """Count experts, as of `ranked`, as used; returns those that come in, and their slots."""
        self.order = used_last(self.order, experts)
        held = set(self.order[: self.size])
        free = [slot for expert, slot in self.slots.items() if expert not in held]
        self.slots = {expert: slot for expert, slot in self.slots.items() if expert in held}
        new = [expert for expert in experts[: self.size] if expert not in self.slots]
        admitted = dict(zip(new, free, strict=True))
        self.slots |= admitted
        return admitted
