"""A few training samples, for stages that calibrate by them."""

from collections.abc import Iterator

import torch

from d2dmoe.data.splits import Batch, open_split
from d2dmoe.jobs.run import Run
from d2dmoe.seeding import seed_for


def drawn_batches(run: Run, purpose: str, samples: int, batch_size: int) -> Iterator[Batch]:
    """Batches of so many training samples, or of all where there are fewer, drawn by the run's
    seed for a purpose of this name, and read as they are evaluated.

    Raises:
        DataError: the training split is missing or damaged.
    """
    train = open_split(run.data, "train")
    generator = torch.Generator().manual_seed(seed_for(purpose, run.seed))
    chosen = torch.randperm(len(train), generator=generator)[:samples]
    for indices in chosen.split(batch_size):
        yield train.batch(train.read(indices), run.device)
