"""Dense models of any architecture: built, taken apart, asked for their blocks and heads."""

from types import ModuleType
from typing import Any

from torch import nn

from d2dmoe.attention import ROLES
from d2dmoe.config.model import TransformerConfig
from d2dmoe.errors import CheckpointError
from d2dmoe.lookup import look_up, module_named
from d2dmoe.models import ARCHITECTURES, names_where
from d2dmoe.registration import attach
from d2dmoe.surgery import find, swap


def create_model(cfg: TransformerConfig, about: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """A dense model with the initial weights that the configuration asks for.

    Args:
        cfg: architecture, sizes, weights.
        about: description of the data (`dataset.json`): classes, image size or tokenizer.

    Returns:
        The options that rebuild the modules by `build_model`, plain values all, and the model.

    Raises:
        CheckpointError: the weights cannot be had, or do not fit the configuration or the data.
    """
    options, model = _module(cfg.architecture).create(cfg, about)
    return options, attach(model)


def build_model(architecture: str, options: dict[str, Any]) -> nn.Module:
    """The modules of a model with fresh weights.

    Raises:
        UnknownName: the architecture is not described here.
    """
    return attach(_module(architecture).build(options))


def separate_projections(architecture: str, model: nn.Module) -> nn.Module:
    """Give every attention of a model, in place, its maps Q, K, V and O as modules of the type
    `attention.Projection`, of which fused ones are taken apart; returns the model, its outputs as
    before. A model in which they are modules already stays as it is."""
    if any(getattr(module, "role", None) in ROLES for module in model.modules()):
        return model
    return _module(architecture).separate_projections(model)


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
    if not look_up(ARCHITECTURES, architecture, "architecture").class_token:
        raise CheckpointError(
            f"the architecture '{architecture}' has no class token, which early exits classify by; "
            f"these have one: {names_where('class_token')}."
        )
    return find(model, _module(architecture).BLOCK)


def count_blocks(architecture: str, model: nn.Module) -> int:
    """Blocks of a model.

    Raises:
        CheckpointError: sublayers of the architecture's blocks cannot be left out.
    """
    return len(find(model, _removable(architecture).BLOCK))


def head_of(architecture: str, model: nn.Module) -> nn.Module:
    """What maps a model's final representation to logits.

    Raises:
        CheckpointError: sublayers of the architecture's blocks cannot be left out.
    """
    return model.get_submodule(_removable(architecture).HEAD)


def leave_out(
    architecture: str, model: nn.Module, block: int, sublayer: str
) -> dict[str, nn.Module]:
    """Leave a sublayer out of a block, in place: its input goes on as it is, without a norm.

    Args:
        architecture: of the model.
        model: one whose attentions are as the architecture builds them.
        block: its index.
        sublayer: attention or ffn.

    Returns:
        The modules that were there, by their names in the model, for `surgery.put`.

    Raises:
        CheckpointError: sublayers of the architecture's blocks cannot be left out.
    """
    module = _removable(architecture)
    place = list(find(model, module.BLOCK))[block]
    names = {f"{place}.{name}": kind for name, kind in module.SUBLAYERS[sublayer].items()}
    old = {name: model.get_submodule(name) for name in names}
    for name, kind in names.items():
        swap(model, name, kind(old[name]))
    return old


def _removable(architecture: str) -> ModuleType:
    if not look_up(ARCHITECTURES, architecture, "architecture").removable:
        raise CheckpointError(
            f"attentions and FFNs of the architecture '{architecture}' cannot be left out, those "
            f"of {names_where('removable')} can."
        )
    return _module(architecture)


def _heads(architecture: str) -> tuple[type[nn.Module], str]:
    if not look_up(ARCHITECTURES, architecture, "architecture").prunable_heads:
        raise CheckpointError(
            f"heads of the architecture '{architecture}' cannot be removed, those of "
            f"{names_where('prunable_heads')} can; prune its neurons alone (heads: 0)."
        )
    return _module(architecture).HEADS


def _module(architecture: str) -> ModuleType:
    return module_named(look_up(ARCHITECTURES, architecture, "architecture").module)
