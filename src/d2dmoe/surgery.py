"""Finding, replacing and watching modules of a model, by type and in the order of the layers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from d2dmoe.errors import ModelError

M = TypeVar("M", bound=nn.Module)


def check_module(model: Any) -> None:
    """
    Raises:
        ModelError: this is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a torch module is needed, not {type(model).__name__}")


def find(model: nn.Module, kind: type[M] | tuple[type[M], ...]) -> dict[str, M]:
    """The modules of a type by their dotted names, in the order in which the model holds them.

    Raises:
        ModelError: this is no torch module.
    """
    check_module(model)
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """`put` a module that gets the mode, training or evaluation, of the one that was there."""
    put(model, name, module.train(model.get_submodule(name).training))


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


def put(model: nn.Module, name: str, value: Any) -> Any:
    """Put a module, in place, wherever the model holds the one of that name; or in place of the
    function that is a plain attribute of that name. Returns what was there.

    Raises:
        AttributeError: the model has nothing of that name.
    """
    path, _, key = name.rpartition(".")
    parent = model.get_submodule(path)
    old = getattr(parent, key)
    if isinstance(old, nn.Module) and isinstance(value, nn.Module):
        for holder in list(model.modules()):
            for other, child in holder._modules.items():
                if child is old:
                    holder._modules[other] = value
    else:
        delattr(parent, key)  # a module's name takes no function, and the reverse
        setattr(parent, key, value)
    return old


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode; afterwards each module has its own again."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class Hook:
    """A hook of one model alone: in copies of the model and in files it does nothing."""

    def __init__(self, function: Callable[..., None]):
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._function(*args, **kwargs)

    def __reduce__(self) -> tuple:
        return Hook, (_nothing,)


def _nothing(*_args: Any, **_kwargs: Any) -> None: ...


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

        handles.append(module.register_forward_hook(Hook(hook)))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
