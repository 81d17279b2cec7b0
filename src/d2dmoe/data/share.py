"""Which samples are a process's own: the one place that deals them out.

The order of an epoch's samples and the draws of each of its batches are functions of (seed, epoch,
position) alone, in every process. So any number of processes together read what one would read: no
sample twice, none left out, wherever the training resumes.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The part of every batch that process `rank` of `world` has.

    A batch falls into `world` runs of neighbours, whose sizes differ by at most one. By rank, they
    are the batch in its order.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self):
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} is none of {self.world} processes")

    def run(self, count: int) -> slice:
        """The process's own samples of a batch of `count`: none, if others have them all."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def of(self, batch: Tensor) -> Tensor:
        """Its own part of a batch, a tensor [samples, ...]."""
        return batch[self.run(len(batch))]


WHOLE = Share()
