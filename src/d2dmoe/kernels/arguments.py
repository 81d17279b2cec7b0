"""Arguments that the kernels for many and for few tokens are launched with alike."""

from typing import Any

import torch
import triton
from torch import Tensor

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.lookup import look_up, resolve
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.weights import ExpertWeights, RouterWeights


def expert_arguments(weights: ExpertWeights, placeholder: Tensor) -> dict[str, Any]:
    """The experts' matrices, biases and form; the placeholder stands for biases that there are none
    of.

    Raises:
        UnknownName: there is no such activation.
    """
    activation = look_up(ACTIVATIONS, weights.activation, "activation")
    return {
        "up": weights.up,
        "gate": or_placeholder(weights.gate, weights.up),
        "down": weights.down,
        "up_bias": or_placeholder(weights.up_bias, placeholder),
        "gate_bias": or_placeholder(weights.gate_bias, placeholder),
        "D_MODEL": weights.d_model,
        "D_OUT": weights.d_out,
        "E": weights.expert_size,
        "ACTIVATION": resolve(activation.triton),
        "GATED": weights.gate is not None,
        "UP_BIAS": weights.up_bias is not None,
        "GATE_BIAS": weights.gate_bias is not None,
    }


def selection_arguments(
    mask: Tensor | None, router: RouterWeights | None, tau: float, n: int, placeholder: Tensor
) -> dict[str, Any]:
    """What selects of n experts: a mask, boolean [tokens, n], or the router's last layer and τ.

    Raises:
        UnknownName: there is no such kind of router.
    """
    arguments = {
        "mask": placeholder if mask is None else mask.view(torch.uint8),
        "router_down": placeholder,
        "router_down_bias": placeholder,
        "tau": tau,
        "n": n,
        "ROUTED": router is not None,
        "SCORE": None,
        "WIDTH_H": padded(0 if router is None else router.up.shape[0]),
        "WIDTH": padded(n),
    }
    if router is not None:
        arguments["router_down"], arguments["router_down_bias"] = router.down, router.down_bias
        kind = look_up(ROUTER_KINDS, router.kind, "router kind")
        arguments["SCORE"] = resolve(kind.triton)
    return arguments


def or_placeholder(values: Tensor | None, placeholder: Tensor) -> Tensor:
    """Some tensor for an argument of a kernel, which does not read it where there are no values."""
    return placeholder if values is None else values


def padded(size: int) -> int:
    """The side of a block that holds so many rows or columns: a power of two, as blocks have, and
    at least 16, as products need."""
    return max(16, triton.next_power_of_2(size))


def aligned(w: Tensor) -> bool:
    """Whether rows of w start at multiples of 16 bytes, as the tensor memory accelerator and bulk
    copies need."""
    return w.data_ptr() % 16 == 0 and w.shape[-1] * w.itemsize % 16 == 0


def precision(z: Tensor) -> str:
    """`input_precision` of products. Where torch may not use TF32, fp32 numbers are each split into
    three TF32 numbers, whose products lose hardly more than fp32 itself."""
    if z.dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
