"""Batches in an order that is a function of (seed, epoch), so that training can resume anywhere.

A sample is read, and changed at random, in worker processes where there are any; what a model is
called with is made of it where it trains. A process of several reads its own share of each batch.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, islice
from threading import Thread, current_thread, main_thread
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.share import WHOLE, Share
from d2dmoe.data.splits import Batch, Raw, Split
from d2dmoe.errors import DataError
from d2dmoe.processes import Place
from d2dmoe.seeding import seed_for

ALONE = Place()
MOST_READERS = 16  # of a model that is measured: as many as decode for one GPU


def iterate(
    split: Split,
    batch_size: int,
    *,
    share: Share = WHOLE,
    every: Place = ALONE,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Raw]:
    """What `split.read` gives of each batch of a split in its stored order.

    Args:
        split: the samples.
        batch_size: B; the last batch may be smaller.
        share: the process's part of each batch.
        every: the process's batches, dealt out one by one.
        workers: processes that read (0: this one); they change no batch.
        pin: put batches where a GPU fetches them from without waiting.

    Raises:
        DataError: a sample cannot be read.
    """
    batches = torch.arange(len(split)).split(batch_size)[every.rank :: every.size]
    yield from _loaded(split.read, map(share.of, batches), workers, pin)


def readers(split: Split, device: torch.device) -> int:
    """Processes that are of use while a model is measured: those of a GPU's share where samples are
    decoded each time that they are read, else none."""
    if device.type != "cuda" or not split.decodes:
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of the job, by torchrun
    return min(max(1, _cpus() // beside), MOST_READERS)


def epoch_order(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of an epoch's samples, int64 [samples]: a pure function of its arguments."""
    generator = torch.Generator().manual_seed(seed_for("order", seed, epoch))
    return torch.randperm(samples, generator=generator)


class TrainingBatches:
    """A training's batches; a pure function of (seed, epoch, position).

    `cfg.batch_size` is that of all processes together. What a process gets is its share of each
    batch, with the random changes that one process alone would give it.
    """

    def __init__(
        self,
        split: Split,
        cfg: TrainingConfig,
        seed: int,
        device: torch.device,
        share: Share = WHOLE,
    ):
        self.split, self.cfg, self.seed, self.device, self.share = split, cfg, seed, device, share

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return self.cfg.steps_per_epoch(len(self.split))

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.cfg.steps(len(self.split))

    def stream(self, start: int) -> Iterator[Batch]:
        """The batches of the training, from step `start` on.

        Raises:
            DataError: a sample cannot be read.
        """
        for step, raw in enumerate(self.read(start), start):
            generator = torch.Generator().manual_seed(seed_for("mix", self.seed, step))
            yield self.split.training_batch(raw, self.cfg, generator, self.device)

    def read(self, start: int) -> Iterator[Raw]:
        """What `Split.read_changed` gives of each of these batches.

        Raises:
            DataError: a sample cannot be read.
        """
        items = islice(self._items(start), max(0, self.total - start))
        read = partial(_read_changed, self.split, self.cfg, self.share)
        yield from _loaded(read, items, self.cfg.workers, self.device.type == "cuda")

    def _items(self, start: int) -> Iterator[tuple[torch.Tensor, int]]:
        """Of each step, the indices of the whole batch and the seed of its changes."""
        first, position = divmod(start, self.per_epoch)
        for epoch in count(first):
            order = epoch_order(len(self.split), self.seed, epoch)
            batches = order.split(self.cfg.batch_size)[: self.per_epoch]
            for place in range(position, self.per_epoch):
                yield batches[place], seed_for("augment", self.seed, epoch, place)
            position = 0


def _read_changed(
    split: Split, cfg: TrainingConfig, share: Share, item: tuple[torch.Tensor, int]
) -> Raw:
    indices, seed = item
    return split.read_changed(indices, share, cfg, torch.Generator().manual_seed(seed))


def _loaded(
    read: Callable[[Any], Raw], items: Iterable[Any], workers: int, pin: bool
) -> Iterator[Raw]:
    """`read` of each item, in their order; workers read ahead."""
    if not workers:
        yield from map(read, items)
        return
    loader = DataLoader(
        _Reader(read),
        sampler=items,
        batch_size=None,  # an item is a batch already
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_left_alone,
        pin_memory=pin,
        generator=torch.Generator(),  # else the loader draws from the global one
    )
    batches = _begun(loader)
    while (raw := _next(batches)) is not None:
        yield raw


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's iterator. A worker's death is said when the next batch is asked for: torch would
    raise it from a signal's handler too, wherever the training is."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if current_thread() is main_thread():  # who else sets none
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return batches


class _Reader(Dataset[Any]):
    """What a DataLoader worker needs: from an item to a batch, or to the error that a user sees,
    into whose message the loader would put a traceback."""

    def __init__(self, read: Callable[[Any], Raw]):
        self.read = read

    def __getitem__(self, item: Any) -> Raw | DataError:
        try:
            return self.read(item)
        except DataError as error:
            return error


def _as_it_is(raw: Any) -> Any:
    return raw


def _left_alone(_worker: int) -> None:
    """Who tells a worker to stop, as SLURM tells all processes of a job, means the training, which
    saves its state first. Its workers end when it tells them to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_pass_on, args=(os.getppid(),), daemon=True).start()


def _pass_on(parent: int) -> None:
    while os.getppid() == parent:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            break
        os.kill(parent, signal.SIGTERM)
    os._exit(0)


def _next(batches: Iterator[Any]) -> Raw | None:
    """The next batch; None after the last.

    Raises:
        DataError: a sample cannot be read, or a worker died.
    """
    try:
        raw = next(batches, None)
    except (RuntimeError, OSError, EOFError) as error:
        if not _tells_of_a_death(error):
            raise
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"a process that reads samples ended ({cause}). It may have run out of memory, or of "
            "shared memory: ask for fewer `workers`, for more memory, or, in a container, for more "
            "of /dev/shm (--shm-size)."
        ) from error
    if isinstance(raw, DataError):
        raise raw
    return raw


def _tells_of_a_death(error: Exception) -> bool:
    """Whether torch found a worker gone, or what it sent cannot be fetched from it any more; not an
    error that a worker had and handed on."""
    text = str(error)
    if text.startswith("Caught "):
        return False
    return "DataLoader worker" in text or not isinstance(error, RuntimeError)


def _cpus() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
