"""The dense models: one module per architecture says all that differs between them.

Every model leaves here with its FFNs in the form of `ffn.FFN`, exactly equal to the original, so
that no later stage knows architectures. It stays what it was in all else, its own class included.
"""

from types import ModuleType
from typing import Any

from torch import nn

from d2dmoe.config.model import ModelConfig
from d2dmoe.errors import CheckpointError


def create_model(cfg: ModelConfig, about: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """A dense model with the initial weights that the configuration asks for.

    Args:
        cfg: architecture, sizes, weights.
        about: description of the data (`dataset.json`): classes, image size or tokenizer.

    Returns:
        The options that rebuild the modules by `build_model`, plain values all, and the model.

    Raises:
        CheckpointError: the weights cannot be had, or do not fit the configuration or the data.
    """
    return _architecture(cfg.architecture).create(cfg, about)


def build_model(architecture: str, options: dict[str, Any]) -> nn.Module:
    """The modules of a model with fresh weights.

    Raises:
        CheckpointError: the architecture is not described here.
    """
    return _architecture(architecture).build(options)


def _architecture(name: str) -> ModuleType:
    # Imported when asked for: torchvision and transformers take seconds each.
    if name == "vit":
        from d2dmoe.models import vit as module
    elif name == "bert":
        from d2dmoe.models import bert as module
    elif name == "gpt2":
        from d2dmoe.models import gpt2 as module
    elif name == "gemma":
        from d2dmoe.models import gemma as module
    else:
        raise CheckpointError(
            f"the architecture '{name}' is not described; described are vit, bert, gpt2, gemma. "
            "A module of d2dmoe/models says where an architecture keeps its FFNs."
        )
    return module
