"""Models of torchvision, by the names that it has for them, with their default weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import hub, nn

from d2dmoe.errors import UserError


def check(name: str) -> None:
    """
    Raises:
        UserError: torchvision has no such model for classes.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"torchvision has no model {name} for classes. See torchvision.models.")


def _weights(name: str) -> Any:
    from torchvision import models

    weights: Any = models.get_model_weights(name)
    return weights.DEFAULT


def missing_bytes(name: str) -> int:
    """Bytes of the weights of that name that are to be fetched."""
    weights = _weights(name)
    if (Path(hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]).is_file():
        return 0
    return int(weights.meta.get("_file_size", 0) * 2**20)


def build(name: str) -> nn.Module:
    """The model of that name, with its pretrained weights."""
    from torchvision import models

    model = models.get_model(name)
    model.load_state_dict(_weights(name).get_state_dict(check_hash=True, weights_only=True))
    return model


def recipe(name: str, _model: nn.Module) -> dict[str, Any]:
    """The factory, and the options with which it builds the model without its weights."""
    return {"factory": "torchvision.models:get_model", "options": {"name": name}}


def transform(name: str, _model: nn.Module) -> Callable:
    """What prepares a PIL image."""
    return _weights(name).transforms()


def classes(name: str, _model: nn.Module) -> list[str]:
    """The names of the outputs, where the weights came with any."""
    return _weights(name).meta.get("categories", [])
