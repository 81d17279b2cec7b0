"""The linear maps of a model, whatever their classes: modules with a matrix that they multiply."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.parametrize import is_parametrized

from d2dmoe.discovery.trace import TOLERANCE, close
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE


def maps_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that may be linear maps, by name; those inside of this package's layers left out."""
    ours = {id(inner) for layer in _layers(model) for inner in layer.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) not in ours and _may_be_map(module)
    }


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, FFN | MoE))


def _may_be_map(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) or (isinstance(weight, Tensor) and weight.ndim == 2)


def problem_of(module: nn.Module) -> str | None:
    """Why a map cannot be taken over, or None."""
    weight: Any = getattr(module, "weight", None)
    kind = type(module).__name__
    if is_parametrized(module):
        return f"a weight of {kind} is parametrised; remove the parametrisation first"
    if (
        type(weight) not in (nn.Parameter, Tensor)
        or weight.dtype not in TOLERANCE
        or weight.ndim != 2
    ):
        return f"the weights of {kind} are quantised or sharded; convert the model before that"
    if weight.is_meta:
        return "its weights are on the meta device; load them first"
    return None


def to_linear(module: nn.Module, z: Tensor, out: Tensor) -> nn.Linear | None:
    """A map as `nn.Linear`, itself where it is one, proved on an input z [..., d_in] and its output
    [..., d_out]; None if it is something else. Conv1D's weight [in, out] is transposed."""
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    if (z.shape[-1], out.shape[-1]) == (weight.shape[1], weight.shape[0]):
        if close(linear(z, weight, bias), out, TOLERANCE[weight.dtype]):
            return module if isinstance(module, nn.Linear) else linear_of(weight, bias)
    if (z.shape[-1], out.shape[-1]) == (weight.shape[0], weight.shape[1]):
        if close(linear(z, weight.T, bias), out, TOLERANCE[weight.dtype]):
            return linear_of(_like(weight, weight.detach().T), bias)
    return None


def halves(module: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Two maps of the first and the second half of a map's outputs."""
    biases = [None, None] if module.bias is None else module.bias.detach().chunk(2)
    first, second = (
        linear_of(_like(module.weight, w), None if b is None else _like(module.bias, b))
        for w, b in zip(module.weight.detach().chunk(2), biases, strict=True)
    )
    return first, second


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear map that uses a given weight [out, in] and bias [out]."""
    layer: Any = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight, layer.bias = weight, bias
    return layer


def _like(parameter: Tensor, values: Tensor) -> nn.Parameter:
    """A parameter of these values, frozen where the given one is."""
    values = values.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(values, parameter.requires_grad)
