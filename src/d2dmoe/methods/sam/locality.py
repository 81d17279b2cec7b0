"""Where the experts that tokens run lie: in how many groups, beside those of plain top-k."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from d2dmoe.methods.sam.grouping import GroupedSelection, selections
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.selection import top_k
from d2dmoe.surgery import watch


class Locality:
    """Running counts of one layer; padding does not count."""

    def __init__(self) -> None:
        self.tokens = self.groups = self.best = self.best_groups = self.inside = 0

    def add(self, selection: GroupedSelection, scores: Tensor, mask: Tensor) -> None:
        """Count what tokens run, boolean [tokens, n], by their scores [tokens, n]; equally many
        for each token."""
        touched, best = selection.touched(mask), top_k(scores, int(mask[0].sum()))
        self.tokens += len(mask)
        self.groups += int(touched.sum())
        self.best += int(best.sum())
        self.best_groups += int(selection.touched(best).sum())
        self.inside += int((best & selection.spread(touched)).sum())

    def row(self) -> dict[str, float]:
        """Columns of the table of layers: groups that a token touches; groups that as many experts
        of the highest scores in all groups, plain top-k's, would touch; and the share of these that
        lies in the token's group."""
        return {
            "groups": self.groups / self.tokens,
            "top_k_groups": self.best_groups / self.tokens,
            "top_k_inside": self.inside / self.best,
        }


@contextmanager
def count_localities(model: nn.Module) -> Iterator[dict[str, Locality]]:
    """Count in every layer with groups, by name, over all forwards in the block."""
    found = selections(model)
    counts = {name: Locality() for name in found}
    by_selection = {selection: counts[name] for name, selection in found.items()}
    with watch_padding(model) as real_tokens:

        def see(selection: GroupedSelection, scores: Tensor, mask: Tensor) -> None:
            real = real_tokens()
            seen = without_padding(scores, real), without_padding(mask, real)
            by_selection[selection].add(selection, *seen)

        with watch(found, see):
            yield counts
