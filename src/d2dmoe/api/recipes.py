"""Which factory with which options builds the dense model that a converted one was: told by its
user, or guessed and proved."""

import warnings
from typing import Any

import torch
from torch import nn

from d2dmoe.api.factories import FACTORIES, Options, guesses, library_of
from d2dmoe.errors import UserError
from d2dmoe.layers import describe, rebuild
from d2dmoe.lookup import resolve

ASK = 'the factory="module:function" and the options={…} that built it'
STATES = ("training", "grad_checkpointing")  # attributes that are no part of what a model is


def recipe_of(
    model: nn.Module, factory: str | None, options: Options | None
) -> tuple[str | None, Options]:
    """A factory and its options; those given, else those that build the model's equal, tensors and
    plain attributes of all modules alike. None where there are none, with a warning if its library
    has factories.

    Raises:
        UserError: the given factory does not build the model.
    """
    name, options = type(model).__name__, options or {}
    if factory is not None:
        wrong = _difference(model, factory, options, _shapes)
        if wrong:
            raise UserError(
                f"{factory} with {options} does not build this {name}: {wrong}. Give {ASK}."
            )
        return factory, options
    for factory, options in guesses(model):
        with torch.device("meta"):
            if _difference(model, factory, options, _everything) is None:
                return factory, options
    if library_of(model) in {factory.library for factory in FACTORIES.values()}:
        warnings.warn(
            f"What built this {name} cannot be read from it, so from_pretrained will need "
            f"model=…, a dense one. Give save_pretrained {ASK}.",
            stacklevel=4,
        )
    return None, {}


def _difference(model: nn.Module, factory: str, options: Options, features: Any) -> str | None:
    """What tells the dense model of a factory, converted in the same way, from the model."""
    try:
        ours = features(model)
        theirs = features(rebuild(resolve(factory)(**options), describe(model)))
    except Exception as error:  # of whatever libraries make of options that do not fit
        return f"{type(error).__name__}: {error}"
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if not names:
        return None
    return f"{names[0]} is {theirs.get(names[0])}, not {ours.get(names[0])}"


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _everything(model: nn.Module) -> dict[str, Any]:
    """Shapes of tensors, and classes and plain attributes of modules."""
    found = _shapes(model)
    for name, module in model.named_modules():
        found[name] = type(module)
        for attribute, value in vars(module).items():
            if _is_plain(value) and attribute not in STATES:
                found[f"{name}.{attribute}"] = value
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
