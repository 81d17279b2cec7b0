"""Models of timm and torchvision, by the names that they have there."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

import d2dmoe
from d2dmoe.cli.download import consent, hub_bytes
from d2dmoe.cli.encoders import Encode, Images, Inputs
from d2dmoe.cli.opened import Loading, Opened, attempt
from d2dmoe.errors import CheckpointError, UserError

REMEDY = "Check the network, or convert a local folder."


class Library(NamedTuple):
    """A library of models for images."""

    check: Callable[[str], None]  # refuses a name that it does not have
    bytes: Callable[[str], int]  # that are to be fetched
    build: Callable[[str, bool], nn.Module]  # by name, with or without its weights
    transform: Callable[[str], Callable[[Any], torch.Tensor]]  # of a PIL image
    classes: Callable[[str], list[str]]  # of the outputs, where they have names


def open_named(library: str, rest: str, how: Loading) -> Opened:
    """A model with its pretrained weights.

    Raises:
        UserError: there is no such model, or its weights cannot be had.
    """
    name, known = f"{library}:{rest}", LIBRARIES[library]
    known.check(rest)
    consent(name, known.bytes(rest), how.yes)
    what = f"{name}: its weights cannot be had"
    return _opened(name, attempt(what, REMEDY, lambda: known.build(rest, True)), name)


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
    model = d2dmoe.from_pretrained(folder, model=LIBRARIES[library].build(rest, False))
    return _opened(folder, model, made_of)


def no_folder(folder: str, architecture: str) -> CheckpointError:
    """The error for a folder in timm's own form."""
    return CheckpointError(
        f"{folder} holds a {architecture} as timm saves it; the command line takes models of timm "
        f"by name, timm:{architecture}. For these weights use the library, with "
        f"timm.create_model('local-dir:{folder}', pretrained=True)."
    )


def _opened(name: str, model: nn.Module, made_of: str) -> Opened:
    library, _, rest = made_of.partition(":")
    known = LIBRARIES[library]

    def encoder() -> Encode:
        transform = known.transform(rest)
        argument = next(iter(inspect.signature(model.forward).parameters))
        return Images(lambda images: _stacked(argument, transform, images))

    kind = "classifier" if getattr(model, "num_classes", 1) else "embedder"
    return Opened(name, model, kind, encoder, known.classes(rest), made_of)


def _stacked(argument: str, transform: Callable, images: list[Any]) -> Inputs:
    return {argument: torch.stack([transform(image) for image in images])}


def _check_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:5] or ["see timm.list_models()"]
        raise UserError(f"timm has no model {name}. Near: {', '.join(near)}.")
    about = timm.get_pretrained_cfg(name)
    if about is None or not about.has_weights:
        raise UserError(f"timm has no pretrained weights for {name}. Choose another.")


def _timm_bytes(name: str) -> int:
    import timm

    repository = timm.get_pretrained_cfg(name).hf_hub_id  # type: ignore[union-attr]
    return hub_bytes(repository) if repository else 0


def _build_timm(name: str, pretrained: bool) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=pretrained)


def _timm_transform(name: str) -> Callable:
    import timm
    from timm.data import create_transform, resolve_data_config

    about: Any = timm.get_pretrained_cfg(name)
    return create_transform(**resolve_data_config(pretrained_cfg=about.to_dict()))


def _check_torchvision(name: str) -> None:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"torchvision has no model {name} for classes. See torchvision.models.")


def _weights(name: str) -> Any:
    from torchvision import models

    weights: Any = models.get_model_weights(name)
    return weights.DEFAULT


def _torchvision_bytes(name: str) -> int:
    return int(_weights(name).meta.get("_file_size", 0) * 2**20)


def _build_torchvision(name: str, pretrained: bool) -> nn.Module:
    from torchvision import models

    model = models.get_model(name)
    if pretrained:
        model.load_state_dict(_weights(name).get_state_dict(check_hash=True, weights_only=True))
    return model


LIBRARIES = {
    "timm": Library(_check_timm, _timm_bytes, _build_timm, _timm_transform, lambda name: []),
    "torchvision": Library(
        _check_torchvision,
        _torchvision_bytes,
        _build_torchvision,
        lambda name: _weights(name).transforms(),
        lambda name: _weights(name).meta.get("categories", []),
    ),
}
