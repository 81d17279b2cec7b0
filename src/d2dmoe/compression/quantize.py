"""Weights in eight bits after the training, activations as they are: w ≈ s q, with integers q in
[−127, 127] and one scale s for each output.

Rounding to the nearest, without a zero point, leaves |w − s q| ≤ s / 2. The file holds q and s,
about a quarter of w's bytes. A module computes w from them whenever its weight is read, so that all
else sees ordinary matrices: the size falls, FLOPs and time do not. Time falls only where up to 16
tokens run experts on a GPU, for that kernel reads their integers.

A map's scales belong to its outputs, so they do not depend on how its neurons are split: experts
have the scales that their FFN would have.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.ao.quantization.observer import PerChannelMinMaxObserver
from torch.nn.utils.parametrize import register_parametrization

from d2dmoe.errors import ModelError
from d2dmoe.models.build import separate_projections
from d2dmoe.moe import MoE
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find

LARGEST = 127
"""Of |q|; −128 is left out, which would make the range unsymmetric."""


class Int8(nn.Module):
    """Parametrisation of a weight that is stored as int8 values q and float scales s."""

    def __init__(self, weight: Tensor, summed: tuple[int, ...]):
        """`summed` are the dimensions of the weight that its map sums over, along which one scale
        holds; the others are those of its outputs."""
        super().__init__()
        self.summed = summed
        self.outputs = tuple(i for i in range(weight.ndim) if i not in summed)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """q, int8 of the weight's shape, and s, of the same but for 1 where it holds along."""
        rows = weight.permute(*self.outputs, *self.summed).flatten(len(self.outputs))
        observer = PerChannelMinMaxObserver(
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            quant_min=-LARGEST,
            quant_max=LARGEST,
        )
        observer(rows.flatten(0, -2))
        scale, _zero = observer.calculate_qparams()
        shape = [1 if i in self.summed else n for i, n in enumerate(weight.shape)]
        scale = scale.to(weight).view(shape)
        q = (weight / scale).round().clamp(-LARGEST, LARGEST)
        return q.to(torch.int8), scale

    def forward(self, q: Tensor, scale: Tensor) -> Tensor:
        """The weight that the parametrised module computes with."""
        return q * scale


def quantize_weights(architecture: str, model: nn.Module) -> nn.Module:
    """Quantise, in place, the weight matrices of a model of any stage; returns the model, frozen.

    Those are the weights of linear maps, also of routers and exits, and of experts. Fused attention
    projections are taken apart first. Embeddings and matrices tied to them, convolutions, norms and
    biases stay floats.
    """
    return _quantize(separate_projections(architecture, model), (nn.Linear, MoE))


def rebuild(model: nn.Module, spec: ModelSpec, weights: str) -> nn.Module:
    """Quantised weights in place of floats; those of `int8`, the one format that there is."""
    return quantize_weights(spec.architecture, model)


def quantize_experts(model: nn.Module) -> nn.Module:
    """Quantise, in place, the experts of a model's MoE layers only; returns the model, frozen.

    Only their integers does a kernel read. Other maps, also routers, would be computed from theirs
    at every call. Save the floats, and quantise what was loaded.

    Raises:
        ModelError: the model has no layer of experts.
    """
    if not find(model, MoE):
        raise ModelError(f"{type(model).__name__} has no experts: d2dmoe.convert(model) first")
    return _quantize(model, (MoE,))


def _quantize(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> nn.Module:
    model.requires_grad_(False)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for module, name, summed in list(_matrices(model)):
        weight = getattr(module, name)
        if isinstance(module, kinds) and uses[id(weight)] == 1:
            register_parametrization(module, name, Int8(weight, summed))
    return model


def _matrices(model: nn.Module) -> Iterator[tuple[nn.Module, str, tuple[int, ...]]]:
    """Every weight matrix: its module, its name there, and the dimensions that are summed over."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module, "weight", (1,)  # [d_out, d_in]
        elif isinstance(module, MoE):
            yield module, "up", (2,)  # [n, e, d_model]
            if module.gate is not None:
                yield module, "gate", (2,)
            yield module, "down", (0, 1)  # [n, e, d_out]
