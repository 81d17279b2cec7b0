"""Structured pruning: heads of the attentions and hidden neurons of the FFNs leave a model.

Rows and columns are cut out of the matrices, not set to zero, so FLOPs and parameters really fall.
Every layer keeps equally many, so that the layers stay alike. Which ones: `compression.importance`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from d2dmoe.attention import Projection
from d2dmoe.ffn import FFN
from d2dmoe.models.build import count_heads, separate_projections, set_heads
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find


def unit_widths(architecture: str, model: nn.Module, heads: bool) -> dict[str, int]:
    """The maps that read the neurons and, if asked for, the heads; the latter takes the attentions
    apart, in place.

    Returns:
        By the names of the FFNs' down maps and the attentions' output maps: the columns of a unit.

    Raises:
        CheckpointError: heads cannot be removed from the architecture.
    """
    neurons = dict.fromkeys((f"{name}.down" for name in find(model, FFN)), 1)
    if not heads:
        return neurons
    attentions, d_head = _attentions(architecture, model)
    return neurons | dict.fromkeys(attentions, d_head)


def keep_units(
    architecture: str,
    model: nn.Module,
    heads: int | None,
    d_ff: int,
    choose: Callable[[str, int], Tensor],
) -> nn.Module:
    """Remove heads and hidden neurons of a dense model, in place; returns the model.

    Args:
        architecture: of the model.
        model: dense, its attention projections linear.
        heads: how many each attention keeps; None: all, and the attentions stay as they are.
        d_ff: hidden neurons that each FFN keeps.
        choose: those that stay, int64 indices, from a name of `unit_widths` and their number.

    Raises:
        CheckpointError: heads cannot be removed from the architecture.
    """
    for name, ffn in find(model, FFN).items():
        keep_neurons(ffn, choose(f"{name}.down", d_ff))
    if heads is not None:
        attentions, d_head = _attentions(architecture, model)
        for name, maps in attentions.items():
            keep_heads(maps, choose(name, heads), d_head)
        set_heads(architecture, model, heads)
    return model


def rebuild(model: nn.Module, spec: ModelSpec, heads: int | None, d_ff: int) -> nn.Module:
    """Give a model, in place, the shapes that `keep_units` leaves, before it gets their weights."""

    def first(_name: str, count: int) -> Tensor:
        return torch.arange(count)

    return keep_units(spec.architecture, model, heads, d_ff, first)


def keep_neurons(ffn: FFN, neurons: Tensor) -> None:
    """Remove from an FFN, in place, all hidden neurons but those of int64 [kept] indices."""
    for layer in (ffn.up, ffn.gate):
        if layer is not None:
            _keep_rows(layer, neurons)
    _keep_columns(ffn.down, neurons)


def keep_heads(maps: Mapping[str, Projection], heads: Tensor, d_head: int) -> None:
    """Remove from an attention's maps, by role, all heads but those of int64 [kept] indices; the
    attention itself has to be told (`models.build.set_heads`)."""
    columns = torch.arange(d_head, device=heads.device)
    rows = (heads[:, None] * d_head + columns).flatten()
    for role in ("q", "k", "v"):
        _keep_rows(maps[role], rows)
    _keep_columns(maps["o"], rows)


def _attentions(
    architecture: str, model: nn.Module
) -> tuple[dict[str, dict[str, Projection]], int]:
    """The maps of each attention by role, by the name of its output map; and d_head."""
    heads = count_heads(architecture, separate_projections(architecture, model))
    found = list(find(model, Projection).items())  # q, k, v, o of one attention after another
    layers = [found[i : i + 4] for i in range(0, len(found), 4)]
    attentions = {layer[-1][0]: {p.role: p for _, p in layer} for layer in layers}
    return attentions, found[0][1].out_features // heads


def _keep_rows(layer: nn.Linear, rows: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[rows], layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[rows], layer.bias.requires_grad)
    layer.out_features = len(rows)


def _keep_columns(layer: nn.Linear, columns: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:, columns], layer.weight.requires_grad)
    layer.in_features = len(columns)
