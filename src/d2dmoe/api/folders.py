"""Converted models of timm, torchvision and plain torch in a folder: `config.json`, which names the
factory of the dense model and says what was put into it, and the weights as safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_model
from torch import Tensor, nn

from d2dmoe import __version__
from d2dmoe.api.factories import Options, build, library_of
from d2dmoe.api.hub import CONFIG
from d2dmoe.api.recipes import recipe_of
from d2dmoe.discovery.refusals import check_loaded
from d2dmoe.errors import CheckpointError
from d2dmoe.io.tensors import load_published
from d2dmoe.layers import describe, rebuild

WEIGHTS = "model*.safetensors"  # one file, or shards
KEY = "d2dmoe"  # of what was put into the model
IMAGES = "pretrained_cfg"  # of timm's models: how images are prepared, and what classes are called
OF_THIS_MACHINE = {"file", "source", "state_dict"}  # entries of it that folders do without
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
        UserError: the factory with these options builds another model.
    """
    factory, options = recipe_of(model, factory, options)
    about = {
        "library": library_of(model),
        "architecture": type(model).__name__,
        "factory": factory,
        "options": options,
        "dtype": str(_dtype(model)).removeprefix("torch."),
        KEY: {"version": __version__} | describe(model),
    }
    if isinstance(getattr(model, IMAGES, None), dict):
        about[IMAGES] = _portable(model)
    text = json.dumps(about, indent=2, sort_keys=True, default=lambda _: None) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    save_torch_model(model, folder, max_shard_size=max_shard_size)


def load(folder: Path, about: dict[str, Any], model: nn.Module | None) -> nn.Module:
    """The model of a folder, in eval mode; `about` is its configuration, `model` a dense one to be
    used, on whose device it then is.

    Raises:
        ModelError: the dense model is on the meta device.
        CheckpointError: the folder is damaged, or does not fit the dense model, or names a factory
            that is not called.
    """
    if model is not None:
        check_loaded(model)
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
    if isinstance(about.get(IMAGES), dict):
        model.pretrained_cfg = {**getattr(model, IMAGES, {}), **about[IMAGES]}  # type: ignore[assignment]
    return model.eval()


def _portable(model: Any) -> dict[str, Any]:
    """What timm knows of a model's weights, without where they lay on this machine."""
    return {name: x for name, x in model.pretrained_cfg.items() if name not in OF_THIS_MACHINE}


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Load weights of whatever dtypes."""
    places = model.state_dict(keep_vars=True)
    for name in places.keys() & tensors.keys():
        places[name].data = places[name].data.to(tensors[name].dtype)
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit its model: {error}. {AGAIN}") from error
    filled = {places[name].data_ptr() for name in places.keys() & tensors.keys()}
    wrong = [name for name in missing if places[name].data_ptr() not in filled] + unknown
    if wrong:  # tied tensors were saved once
        raise CheckpointError(
            f"{folder}: {len(wrong)} tensors are missing or unknown, first {wrong[:3]}. {AGAIN}"
        )


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
