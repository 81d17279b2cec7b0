"""Finding, replacing and watching modules of a model, by type and in the order of the layers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from d2dmoe.errors import ModelError

M = TypeVar("M", bound=nn.Module)


def find(model: nn.Module, kind: type[M] | tuple[type[M], ...]) -> dict[str, M]:
    """The modules of a type by their dotted names, in the order in which the model holds them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module, in place, where the one called `name` is, in the mode of that one: training or
    evaluation."""
    model.set_submodule(name, module.train(model.get_submodule(name).training))


def replace(model: nn.Module, kind: type[M], make: Callable[[M, int], nn.Module]) -> nn.Module:
    """Replace in place each module of a type by `make(module, index)`, as `swap` does; returns the
    model.

    Raises:
        ModelError: the model has no module of that type.
    """
    found = find(model, kind)
    if not found:
        raise ModelError(f"{type(model).__name__} holds no {kind.__name__}")
    for index, (name, module) in enumerate(found.items()):
        swap(model, name, make(module, index))
    return model


@contextmanager
def watch(modules: Mapping[str, M], see: Callable[[M, Any, Any], Any]) -> Iterator[dict[str, Any]]:
    """Record `see(module, input, output)` of each module, by name, at every forward.

    A later forward overwrites what an earlier one recorded; the hooks go when the block ends.
    """
    recorded: dict[str, Any] = {}
    handles = []
    for name, module in modules.items():

        def hook(module, inputs, output, name=name):
            recorded[name] = see(module, inputs[0], output)

        handles.append(module.register_forward_hook(hook))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
