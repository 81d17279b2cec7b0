"""Models of timm and torchvision, by the names that they have there, or of folders."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import d2dmoe
from d2dmoe.cli import of_timm, of_torchvision
from d2dmoe.cli.download import consent
from d2dmoe.cli.encoders import Encode, Images, Inputs
from d2dmoe.cli.opened import Loading, Opened, attempt
from d2dmoe.errors import CheckpointError

REMEDY = "Check the network, or convert a local folder."


class Library(NamedTuple):
    """A library of models for images."""

    check: Callable[[str], None]  # refuses a name that it does not have
    bytes: Callable[[str], int]  # that are to be fetched
    build: Callable[[str], nn.Module]  # by name, with its weights
    recipe: Callable[[str, nn.Module], dict[str, Any]]  # what builds it without: `save_pretrained`
    transform: Callable[[str, nn.Module], Callable[[Any], torch.Tensor]]  # of a PIL image
    classes: Callable[[str, nn.Module], list[str]]  # of the outputs, where they have names


LIBRARIES = {
    "timm": Library(
        of_timm.check,
        of_timm.missing_bytes,
        of_timm.build,
        of_timm.recipe,
        of_timm.transform,
        of_timm.classes,
    ),
    "torchvision": Library(
        of_torchvision.check,
        of_torchvision.missing_bytes,
        of_torchvision.build,
        of_torchvision.recipe,
        of_torchvision.transform,
        of_torchvision.classes,
    ),
}


def open_named(library: str, rest: str, how: Loading) -> Opened:
    """A model with its pretrained weights.

    Raises:
        UserError: there is no such model, or its weights cannot be had.
    """
    name, known = f"{library}:{rest}", LIBRARIES[library]
    known.check(rest)
    consent(name, known.bytes(rest), how.yes)
    what = f"{name}: its weights cannot be had"
    model = attempt(what, REMEDY, lambda: known.build(rest))
    return _opened(name, model, name, known.recipe(rest, model))


def open_folder(name: str, folder: Path, saved: dict[str, Any]) -> Opened:
    """A model of a folder in timm's own form; `saved` is what its config.json says.

    Raises:
        UserError: the folder is not whole, or names no model of timm.
    """
    model = of_timm.load(name, folder, saved)
    made_of = f"timm:{saved['architecture']}"
    return _opened(name, model, made_of, of_timm.recipe(saved["architecture"], model))


def open_saved(folder: str, saved: dict[str, Any]) -> Opened:
    """A converted model of a folder, whose config.json says what it was made of.

    Raises:
        UserError: it does not say so, or is damaged.
    """
    made_of = str(saved.get("made_of", ""))
    library, _, rest = made_of.partition(":")
    if library not in LIBRARIES:
        raise CheckpointError(
            f"{folder} holds a model of {saved['library']} that `d2dmoe convert` did not write, so "
            "it is not known how its images are prepared. Load it by d2dmoe.from_pretrained."
        )
    LIBRARIES[library].check(rest)
    recipe = {"factory": saved["factory"], "options": saved["options"]}
    return _opened(folder, d2dmoe.from_pretrained(folder), made_of, recipe)


def _opened(name: str, model: nn.Module, made_of: str, recipe: dict[str, Any]) -> Opened:
    library, _, rest = made_of.partition(":")
    known = LIBRARIES[library]

    def encoder() -> Encode:
        transform = known.transform(rest, model)
        argument = next(iter(inspect.signature(model.forward).parameters))
        return Images(lambda images: _stacked(argument, transform, images))

    kind = "classifier" if getattr(model, "num_classes", 1) else "embedder"
    opened = Opened(name, model, kind, encoder, known.classes(rest, model), made_of)
    opened.kept.update(recipe)
    return opened


def _stacked(argument: str, transform: Callable, images: list[Any]) -> Inputs:
    return {argument: torch.stack([transform(image) for image in images])}
