"""The dense models: one module per architecture says all that differs between them.

Every model leaves here with its FFNs in the form of `ffn.FFN`, exactly equal to the original, so
that no later stage knows architectures. It stays what it was in all else, its own class included.
"""

from types import ModuleType
from typing import Any

from torch import nn

from d2dmoe.attention import ROLES
from d2dmoe.config.model import ModelConfig
from d2dmoe.errors import CheckpointError
from d2dmoe.surgery import find


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


def separate_projections(architecture: str, model: nn.Module) -> nn.Module:
    """Give every attention of a model, in place, its maps Q, K, V and O as modules of the type
    `attention.Projection`, of which fused ones are taken apart; returns the model, its outputs as
    before. A model in which they are modules already stays as it is."""
    if any(getattr(module, "role", None) in ROLES for module in model.modules()):
        return model
    return _architecture(architecture).separate_projections(model)


def count_heads(architecture: str, model: nn.Module) -> int:
    """Heads of each attention of a model with separate projections.

    Raises:
        CheckpointError: heads cannot be removed from the architecture.
    """
    kind, attribute = _heads(architecture)
    return getattr(next(iter(find(model, kind).values())), attribute)


def set_heads(architecture: str, model: nn.Module, heads: int) -> None:
    """Tell every attention, in place, how many heads its projections hold.

    Raises:
        CheckpointError: heads cannot be removed from the architecture.
    """
    kind, attribute = _heads(architecture)
    for attention in find(model, kind).values():
        setattr(attention, attribute, heads)


def blocks_of(architecture: str, model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model that classifies by its first token, by name, from the first to the
    last; each gives [batch, tokens, d_model].

    Raises:
        CheckpointError: the architecture has no such token.
    """
    block = getattr(_architecture(architecture), "BLOCK", None)
    if block is None:
        raise CheckpointError(
            f"the architecture '{architecture}' has no class token, which early exits classify by; "
            "vit and bert have one."
        )
    return find(model, block)


def _heads(architecture: str) -> tuple[type[nn.Module], str]:
    heads = getattr(_architecture(architecture), "HEADS", None)
    if heads is None:
        raise CheckpointError(
            f"heads of the architecture '{architecture}' cannot be removed, those of vit and bert "
            "can; prune its neurons alone (heads: 0)."
        )
    return heads


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
            "A module of d2dmoe/models says where an architecture keeps its FFNs and projections."
        )
    return module
