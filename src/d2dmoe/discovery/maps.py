"""The linear maps of a model, whatever their classes: modules with a matrix that they multiply.

Among them are convolutions of one position, whose tokens are the positions of an image and whose
channels stand before them. Elsewhere in this package features are the last dimension of a tensor.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from d2dmoe.discovery.trace import TOLERANCE, close
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE


def maps_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that may be linear maps of vectors that are the last dimension, by name; those inside
    of this package's layers left out."""
    return {name: m for name, m in all_maps_of(model).items() if not isinstance(m, _ConvNd)}


def all_maps_of(model: nn.Module) -> dict[str, nn.Module]:
    """The same, with convolutions of one position."""
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
    if isinstance(module, _ConvNd):
        return _is_pointwise(module)
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) or (isinstance(weight, Tensor) and weight.ndim == 2)


def _is_pointwise(module: _ConvNd) -> bool:
    """Whether a convolution maps the channels of each position by themselves."""
    steps = {*module.kernel_size, *module.stride}
    return steps == {1} and not module.transposed and not any(_padding(module))


def _padding(module: _ConvNd) -> tuple[int, ...]:
    padding: Any = module.padding  # of a kernel of one "same" and "valid" are none
    return () if isinstance(padding, str) else padding


def features_of(module: nn.Module) -> int:
    """The dimension of the vectors that a map takes and gives, counted from the last, -1."""
    return -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1


def last(x: Tensor, features: int) -> Tensor:
    """A tensor whose vectors are this dimension, with them as its last; itself if it has too few
    dimensions."""
    return x.movedim(features, -1) if x.ndim >= -features else x


def problem_of(module: nn.Module) -> str | None:
    """Why a map cannot be taken over, or None."""
    weight: Any = getattr(module, "weight", None)
    kind = type(module).__name__
    if is_parametrized(module):
        return f"a weight of {kind} is parametrised; remove the parametrisation first"
    if "weight" not in module._parameters | module._buffers:
        made = ", ".join(name for name, _ in module.named_parameters())
        return f"the weight of {kind} is computed of others ({made}): merge them into it first"
    if (
        type(weight) not in (nn.Parameter, Tensor)
        or weight.dtype not in TOLERANCE
        or weight.ndim != (len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else 2)
    ):
        return f"the weights of {kind} are quantised or sharded; convert the model before that"
    if getattr(module, "groups", 1) > 1:
        return f"its {kind} maps {module.groups} groups of features, each by itself"
    if weight.is_meta:
        return "its weights are on the meta device; load them first"
    if not all(p.detach().isfinite().all() for p in module.parameters(recurse=False)):
        return "its weights hold NaN or infinity"
    return None


def shared_with(model: nn.Module, parts: Iterable[nn.Module]) -> str | None:
    """The first of the model's other modules, by name, that holds a tensor of these modules; None
    where all are their own. One module in several places is no other."""
    own = {id(module): module for part in parts for module in part.modules()}
    tensors = {key for module in own.values() for key in _tensors(module)}
    return next(
        (
            name
            for name, module in model.named_modules()
            if id(module) not in own and not tensors.isdisjoint(_tensors(module))
        ),
        None,
    )


def _tensors(module: nn.Module) -> Iterator[Any]:
    """What tells a module's own parameters from others: where their numbers lie."""
    for tensor in module._parameters.values():
        if tensor is not None and tensor.numel():
            plain = type(tensor) in (nn.Parameter, Tensor) and not tensor.is_meta
            yield (tensor.device, tensor.data_ptr()) if plain else id(tensor)


SHARED = (
    "it shares weights with {}, from which experts would part it: let both be one module, which is "
    "converted once, or give it weights of its own (nn.Parameter(weight.detach().clone()))"
)


def to_linear(module: nn.Module, z: Tensor, out: Tensor) -> nn.Linear | None:
    """A map as `nn.Linear`, itself where it is one, proved on an input z [..., d_in] and its output
    [..., d_out]; None if it is something else. Conv1D's weight [in, out] is transposed, a
    convolution's [out, in, 1, 1] flattened."""
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    if isinstance(module, _ConvNd):
        weight = _like(weight, weight.detach().flatten(1))
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


def folded(module: nn.Linear, scale: float, shift: float) -> nn.Linear:
    """The map of what is to be scaled and shifted first: W (scale · h + shift) + b. A dropout of
    what it maps spares the constant then."""
    weight = module.weight.detach().double()
    bias = shift * weight.sum(1) + (0 if module.bias is None else module.bias.detach())
    return linear_of(
        _like(module.weight, (scale * weight).to(module.weight.dtype)),
        _like(module.weight, bias.to(module.weight.dtype)),
    )


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
