"""Batches in an order that is a function of (seed, epoch), so that training can resume anywhere."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from d2dmoe.data.splits import Raw, Split
from d2dmoe.seeding import seed_for


def iterate(
    split: Split,
    batch_size: int,
    *,
    seed: int | None,
    epoch: int = 0,
    start: int = 0,
    drop_last: bool = False,
    num_workers: int = 0,
) -> Iterator[Raw]:
    """What `split.read` gives of each batch of one pass over `split`.

    Args:
        split: the samples.
        batch_size: B; the last batch may be smaller.
        seed: None for the stored order, else that of the shuffle, new in each epoch.
        epoch: which pass this is, from 0.
        start: leave out so many batches; their samples are not read.
        drop_last: leave out a last batch that is smaller.
        num_workers: processes that decode images (0: this one); they change no batch. Of use for
            sets that are not kept in memory.

    Raises:
        DataError: a sample cannot be read.
    """
    batches = epoch_order(len(split), seed, epoch).split(batch_size)[start:]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches = batches[:-1]
    if num_workers == 0:
        yield from map(_Reader(split).__getitem__, batches)
        return
    yield from DataLoader(
        _Reader(split),
        sampler=batches,
        batch_size=None,  # an item is a batch already
        num_workers=num_workers,
        generator=torch.Generator(),  # else the loader draws from the global one
    )


def epoch_order(count: int, seed: int | None, epoch: int) -> torch.Tensor:
    """The order of `count` samples in an epoch, int64 [count]: a pure function of its arguments."""
    if seed is None:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed_for("order", seed, epoch))
    return torch.randperm(count, generator=generator)


class _Reader(Dataset[Raw]):
    """What a DataLoader worker needs: from the indices of a batch to the batch."""

    def __init__(self, split: Split):
        self.split = split

    def __getitem__(self, indices: torch.Tensor) -> Raw:
        return self.split.read(indices)
