"""Models of timm: by the names that it has for them, and of folders as its `save_for_hf` writes
them. A model's `pretrained_cfg` says how its images are prepared and what its classes are called.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from d2dmoe.cli.download import hub_bytes
from d2dmoe.cli.opened import attempt
from d2dmoe.errors import CheckpointError, UserError

WEIGHTS = "model.safetensors"
WHOLE = (
    "Save it again, with timm.models.save_for_hf(model, folder, safe_serialization=True), "
    "or fetch it again."
)


def check(name: str) -> None:
    """
    Raises:
        UserError: timm has no such model, or no pretrained weights for it.
    """
    import timm

    _check_architecture(name)
    about = timm.get_pretrained_cfg(name)
    if about is None or not about.has_weights:
        raise UserError(f"timm has no pretrained weights for {name}. Choose another.")


def _check_architecture(name: str) -> None:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:5] or ["see timm.list_models()"]
        raise UserError(f"timm has no model {name}. Near: {', '.join(near)}.")


def missing_bytes(name: str) -> int:
    """Bytes of the weights of that name that are to be fetched."""
    import timm

    repository = timm.get_pretrained_cfg(name).hf_hub_id  # type: ignore[union-attr]
    return hub_bytes(repository) if repository else 0


def build(name: str) -> nn.Module:
    """The model of that name, with its pretrained weights."""
    import timm

    return timm.create_model(name, pretrained=True)


def load(name: str, folder: Path, saved: dict[str, Any]) -> nn.Module:
    """The model of a folder in timm's form; `saved` is its config.json, `name` what it was called.

    Raises:
        UserError: the folder is not whole, or names no model of timm.
    """
    import timm

    _check_architecture(str(saved["architecture"]))
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{name} holds no {WEIGHTS}, and pickles are not read. {WHOLE}")
    what = f"{name}: the model cannot be loaded"
    return attempt(what, WHOLE, lambda: timm.create_model(f"local-dir:{folder}", pretrained=True))


def recipe(name: str, model: Any) -> dict[str, Any]:
    """The factory, and the options with which it builds the model without its weights."""
    made_with = dict(getattr(model, "_model_args", {}))  # as timm itself writes them into folders
    options = {"model_name": name, "num_classes": model.num_classes} | made_with
    return {"factory": "timm:create_model", "options": options}


def transform(_name: str, model: Any) -> Callable:
    """What prepares a PIL image."""
    from timm.data import create_transform, resolve_data_config

    return create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg))


def classes(_name: str, model: Any) -> list[str]:
    """The names of the outputs, where the weights came with any."""
    names = model.pretrained_cfg.get("label_names") or []
    if isinstance(names, dict):  # by number, as JSON has it; with gaps they are of no use here
        names = [names.get(str(number), names.get(number)) for number in range(len(names))]
    return [] if None in names else [str(name) for name in names]
