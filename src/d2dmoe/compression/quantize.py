"""Weights in eight bits after the training, activations as they are: w ≈ s q, with integers q in
[−127, 127] and one scale s for each output.

Rounding to the nearest, without a zero point, leaves |w − s q| ≤ s / 2. The file holds q and s,
about a quarter of w's bytes. A module computes w from them whenever its weight is read, so that all
else sees ordinary matrices: the size falls, FLOPs and time do not.

A map's scales belong to its outputs, so they do not depend on how its neurons are split: experts
have the scales that their FFN would have.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine_with_min_max,
    dequantize_affine,
    quantize_affine,
)

from d2dmoe.models import separate_projections
from d2dmoe.moe import MoE

LARGEST = 127
"""Of |q|; −128 is left out, which would make the range unsymmetric."""

RANGE = {"quant_min": -LARGEST, "quant_max": LARGEST}


class Int8(nn.Module):
    """Parametrisation of a weight that is stored as int8 values q and float scales s."""

    def __init__(self, weight: Tensor, summed: tuple[int, ...]):
        """`summed` are the dimensions of the weight that its map sums over, along which one scale
        holds; the others are those of its outputs."""
        super().__init__()
        self.summed = summed
        self.block = tuple(n if i in summed else 1 for i, n in enumerate(weight.shape))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """q, int8 of the weight's shape, and s, of the shape of the outputs."""
        # Not choose_qparams_affine, which takes one scale for all where outputs have one weight.
        ends = weight.amin(self.summed), weight.amax(self.summed)
        scale, zero = choose_qparams_affine_with_min_max(
            *ends, MappingType.SYMMETRIC, self.block, torch.int8, **RANGE
        )
        return quantize_affine(weight, self.block, scale, zero, torch.int8, **RANGE), scale

    def forward(self, q: Tensor, scale: Tensor) -> Tensor:
        """The weight that the parametrised module computes with."""
        return dequantize_affine(
            q, self.block, scale, None, torch.int8, **RANGE, output_dtype=scale.dtype
        )


def quantize_weights(architecture: str, model: nn.Module) -> nn.Module:
    """Quantise, in place, the weight matrices of a model of any stage; returns the model, frozen.

    Those are the weights of linear maps, also of routers and exits, and of experts. Fused attention
    projections are taken apart first. Embeddings and matrices tied to them, convolutions, norms and
    biases stay floats.
    """
    separate_projections(architecture, model).requires_grad_(False)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for module, name, summed in list(_matrices(model)):
        weight = getattr(module, name)
        if uses[id(weight)] == 1:
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
