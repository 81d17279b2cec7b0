"""Converted models of timm, torchvision and plain torch in a folder: `config.json`, which names the
factory of the dense model and says what was put into it, and the weights as safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_model
from torch import Tensor, nn

from d2dmoe import __version__
from d2dmoe.api.factories import Options, build, recipe_of
from d2dmoe.api.hub import CONFIG
from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.io.tensors import load_published
from d2dmoe.layers import describe, rebuild
from d2dmoe.lookup import resolve

WEIGHTS = "model*.safetensors"  # one file, or shards
KEY = "d2dmoe"  # of what was put into the model
AGAIN = "Fetch the folder again, or save the model anew."


def save(
    model: nn.Module,
    folder: Path,
    factory: str | None,
    options: Options | None,
    max_shard_size: str | int,
) -> None:
    """Write configuration and weights; see `pretrained.save_pretrained`.

    Raises:
        UserError: the factory with these options, or those read from the model, builds another.
    """
    told = factory is not None
    if factory is None:
        factory, options = recipe_of(model) or (None, None)
    options = options or {}
    wrong = factory and _other_than(model, resolve(factory)(**options), whole=not told)
    if wrong:
        raise UserError(
            f"{factory} with {options} builds another model: {wrong}. Call save_pretrained with "
            'the factory="module:function" and the options={…} that built yours.'
        )
    about = {
        "library": type(model).__module__.partition(".")[0],
        "architecture": type(model).__name__,
        "factory": factory,
        "options": options,
        "dtype": str(_dtype(model)).removeprefix("torch."),
        KEY: {"version": __version__} | describe(model),
    }
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    save_torch_model(model, folder, max_shard_size=max_shard_size)


def load(folder: Path, about: dict[str, Any], model: nn.Module | None) -> nn.Module:
    """The model of a folder, in eval mode; `about` is its configuration, `model` a dense one to be
    used, on whose device it then is.

    Raises:
        CheckpointError: the folder is damaged, or does not fit the dense model, or names a factory
            that is not called.
    """
    try:
        dtype = getattr(torch, about["dtype"])
        model = build(about["factory"], about["options"]) if model is None else model
        rebuild(model.to(dtype), about[KEY])
    except CheckpointError:
        raise
    except Exception as error:  # of whatever libraries make of options that do not fit
        raise CheckpointError(
            f"{folder / CONFIG} does not fit ({type(error).__name__}: {error}). {AGAIN}"
        ) from error
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(WEIGHTS)):
        tensors |= load_published(path, AGAIN)
    _fill(model, tensors, folder)
    return model.eval()


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load weights of whatever dtypes."""
    names = model.state_dict(keep_vars=True)
    for name in names.keys() & tensors.keys():
        names[name].data = names[name].data.to(tensors[name].dtype)
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit its model: {error}. {AGAIN}") from error
    filled = {names[name].data_ptr() for name in names.keys() & tensors.keys()}
    wrong = [name for name in missing if names[name].data_ptr() not in filled] + unknown
    if wrong:  # tied tensors were saved once
        raise CheckpointError(
            f"{folder}: {len(wrong)} tensors are missing or unknown, first {wrong[:3]}. {AGAIN}"
        )


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _other_than(model: nn.Module, dense: nn.Module, whole: bool) -> str | None:
    """What tells a dense model, converted in the same way, from the model; None: nothing. If
    `whole`, attributes such as rates and kinds of pooling count, and not the tensors alone."""
    try:
        rebuild(dense, describe(model))
    except AttributeError as error:
        return str(error)
    ours, theirs = _shapes(model), _shapes(dense)
    if whole:
        ours, theirs = ours | _attributes(model), theirs | _attributes(dense)
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if not names:
        return None
    return f"{names[0]} is {theirs.get(names[0])}, not {ours.get(names[0])}"


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Plain attributes of all modules."""
    plain = (bool, int, float, str, tuple)
    return {
        f"{name}.{attribute}".removeprefix("."): value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, plain) and attribute != "training"
    }
