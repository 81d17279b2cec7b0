"""The processes that share a job, a GPU each: which of them this is, and what they tell each other.

A job has one, unless the configuration's `resources` ask for more; torchrun then starts its script
that often. All do the same, but each computes its share of the samples, and the first alone writes
files. Where there is one process, nothing here imports torch, and nothing is told to anybody.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from d2dmoe.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Place(NamedTuple):
    """Of a process among those that share the job."""

    rank: int = 0
    size: int = 1


LOST = re.compile("gloo|nccl|Connection (closed|reset)|Broken pipe", re.IGNORECASE)
_place = Place()
_aside: Any = None  # a group of all, so that what a thread says never mixes with what others say


def place() -> Place:
    """Where this process stands."""
    return _place


def leads() -> bool:
    """Whether this is the process that writes files."""
    return _place.rank == 0


@contextmanager
def joined(backend: str = "gloo", **where: Any) -> Iterator[None]:
    """Share the job with others, for as long as the context lasts.

    Args:
        backend: of torch.distributed.
        where: how they find each other, arguments of `init_process_group`; without any, by the
            environment that torchrun sets.
    """
    global _place, _aside
    import torch.distributed as dist

    dist.init_process_group(backend, **where)
    _aside = dist.new_group(backend="gloo")
    _place = Place(dist.get_rank(), dist.get_world_size())
    try:
        yield
        dist.destroy_process_group()  # not after an error: it would wait for whoever has left
    finally:
        _place, _aside = Place(), None


@contextmanager
def noticing_losses() -> Iterator[None]:
    """What libraries say when another process has ended, as a user reads it.

    Raises:
        UserError: another process of the job ended.
    """
    try:
        yield
    except RuntimeError as error:
        if _place.size == 1 or not LOST.search(str(error)):
            raise
        raise UserError(
            "another process of the job ended: its own error, if it had one, stands in this log. "
            "Run the same command again: a training goes on from its saved state."
        ) from error


def told(value: Any, aside: bool = False) -> list[Any]:
    """What each process says, in their order: for small things; `aside` while others of its
    threads may speak."""
    if _place.size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * _place.size
    dist.all_gather_object(values, value, group=_aside if aside else None)
    return values


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if _place.size == 1:
        return number
    import torch
    import torch.distributed as dist

    found = torch.tensor(number)  # on the CPU, so that no GPU is waited for
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def spread(items: Sequence[Item], compute: Callable[[Item], Result]) -> list[Result]:
    """The results of all items in their order, each computed by one of the processes, so that they
    are to the bit those of one process. Results are on the CPU and can be pickled."""
    own = [compute(items[index]) for index in range(_place.rank, len(items), _place.size)]
    parts = told(own)
    return [parts[index % _place.size][index // _place.size] for index in range(len(items))]
