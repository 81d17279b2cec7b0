"""Running a model for what its modules do: without gradients, randomness or traces left behind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Example(NamedTuple):
    """What a model is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))


def run(model: nn.Module, example: Example) -> Any:
    """The model's output in eval mode; modes, random states and fast paths are as before."""
    training = [module for module in model.modules() if module.training]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it calls no modules
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # some models draw random numbers in eval mode
            return model(*example.args, **example.kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in training:
            module.training = True


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Hooks that go when the block ends."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested mappings and sequences, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def only_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a module is called with, if that is all."""
    if len(args) + len(kwargs) != 1:
        return None
    value = args[0] if args else next(iter(kwargs.values()))
    return value if isinstance(value, Tensor) else None


TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 6e-2}
"""Difference, relative to the largest value, that rounding explains: another order of summation,
and constants of activations that some models write with eight digits."""


def close(new: Tensor, old: Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal but for this difference, relative to the largest value."""
    if new.shape != old.shape:
        return False
    if not old.is_floating_point():
        return bool((new == old).all())
    difference = (new.double() - old.double()).abs()
    difference = difference[~(new == old)]  # infinities are equal
    largest = old[old.isfinite()].abs().max().double() if old.isfinite().any() else 0.0
    return bool((difference <= tolerance * largest).all())
