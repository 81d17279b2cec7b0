"""Training samples that a model is looked at with before it is changed."""

from collections.abc import Iterator

import torch

from d2dmoe.data.splits import Batch, open_split
from d2dmoe.jobs.run import Run
from d2dmoe.seeding import seed_for


def drawn_samples(run: Run, purpose: str, count: int, batch_size: int) -> Iterator[Batch]:
    """Batches of `count` training samples, or all where there are fewer, as they are evaluated.

    They are drawn by the run's seed; each `purpose` draws others.
    """
    train = open_split(run.data, "train")
    generator = torch.Generator().manual_seed(seed_for(purpose, run.seed))
    chosen = torch.randperm(len(train), generator=generator)[:count]
    for indices in chosen.split(batch_size):
        yield train.batch(train.read(indices), run.device)
