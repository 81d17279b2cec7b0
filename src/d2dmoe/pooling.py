"""Means over a batch that several processes share: the same as those of one that has all of it.

While `shared_batches` lasts, each process has a share of every batch. What is a mean over samples
or tokens there, a loss or a statistic, is `pooled`, and with it its gradient: the mean over the
processes of the gradients is that of the whole batch, which is what DDP and FSDP compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from d2dmoe.processes import place

_shared = False


@contextmanager
def shared_batches() -> Iterator[None]:
    """Batches are shares of larger ones, where there are several processes."""
    global _shared
    before, _shared = _shared, place().size > 1
    try:
        yield
    finally:
        _shared = before


def pooled(mean: Tensor, count: int) -> Tensor:
    """The mean over all of a shared batch, of any shape; otherwise the tensor that is given.

    Args:
        mean: that of this process's rows, with gradients or without.
        count: how many rows these are.
    """
    return _Pooled.apply(mean, count) if _shared else mean


def total(values: Tensor) -> Tensor:
    """The sum of the processes' tensors, without gradients; otherwise the tensor that is given."""
    if not _shared:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def summed(values: Tensor) -> Tensor:
    """As `total`, with gradients: for what each process goes on to compute with by itself."""
    return _Summed.apply(values) if _shared else values


class _Pooled(torch.autograd.Function):
    """All processes get the same mean and do the same with it, so that the gradients that they
    give it are equal, and nothing has to be told in the backward pass."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, count: int) -> Tensor:
        own = torch.full((1,), count, dtype=torch.float64, device=mean.device)
        told = torch.cat([mean.double().flatten() * count, own])
        dist.all_reduce(told)
        ctx.weight = place().size * count / told[-1]
        return (told[:-1] / told[-1]).view_as(mean).to(mean.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient * ctx.weight.to(gradient.dtype), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient
