"""A few training samples, for stages that calibrate by them."""

from collections.abc import Sequence
from typing import Any

import torch

from d2dmoe.data.splits import Batch, Split, open_split
from d2dmoe.jobs.run import Run
from d2dmoe.seeding import seed_for


def drawn_batches(run: Run, purpose: str, samples: int, batch_size: int) -> "DrawnBatches":
    """Batches of so many training samples, or of all where there are fewer, drawn by the run's
    seed for a purpose of this name, and read as they are evaluated.

    Raises:
        DataError: the training split is missing or damaged.
    """
    train = open_split(run.data, "train")
    generator = torch.Generator().manual_seed(seed_for(purpose, run.seed))
    chosen = torch.randperm(len(train), generator=generator)[:samples]
    return DrawnBatches(train, chosen.split(batch_size), run.device)


class DrawnBatches(Sequence[Batch]):
    """Batches of a split, each read when it is asked for."""

    def __init__(self, split: Split, indices: Sequence[torch.Tensor], device: torch.device):
        self.split, self.indices, self.device = split, indices, device

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.split.batch(self.split.read(self.indices[index]), self.device)
