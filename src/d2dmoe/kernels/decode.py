"""The expert kernel for a few tokens, as in decoding: bound by the bytes of the selected experts.

Each program has a block of one expert's neurons, reads their rows of W1 (and of the gate) and W2
once for all tokens that chose the expert, and adds into an fp32 output. Programs of experts that no
token chose end at once, so time follows the executed share.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2dmoe.kernels.experts import Experts
from d2dmoe.kernels.reference import outside
from d2dmoe.kernels.routing import precision
from d2dmoe.kernels.tiles import hidden_neurons

MAX_TOKENS = 16
NEURONS = 16  # of a program


def decode(z: Tensor, mask: Tensor, experts: Experts) -> Tensor:
    """The layer's output for up to `MAX_TOKENS` tokens.

    Args:
        z: [tokens, d_model], contiguous.
        mask: boolean [tokens, n], contiguous.

    Returns:
        [tokens, d_out], of z's dtype; sums are kept in fp32.
    """
    tokens, d_out = len(z), experts.d_out
    out = outside(z, experts, torch.float32)
    e = experts.expert_size
    _decode[(experts.num_experts, triton.cdiv(e, NEURONS))](
        z,
        mask.view(torch.uint8),
        experts.up,
        experts.up if experts.gate is None else experts.gate,
        experts.down,
        out if experts.up_bias is None else experts.up_bias,
        out if experts.gate_bias is None else experts.gate_bias,
        out,
        tokens,
        experts.num_experts,
        experts.d_model,
        d_out,
        E=e,
        ACTIVATION=experts.activation,
        GATED=experts.gate is not None,
        UP_BIAS=experts.up_bias is not None,
        GATE_BIAS=experts.gate_bias is not None,
        TOKENS=MAX_TOKENS,
        NEURONS=NEURONS,
        BLOCK_K=256,
        BLOCK_N=128,
        PRECISION=precision(z),
        num_warps=4,
        num_stages=3,
    )
    return out.to(z.dtype)


@triton.jit
def _decode(
    z,
    mask,
    up,
    gate,
    down,
    up_bias,
    gate_bias,
    out,
    num_tokens,
    n,
    d_model,
    d_out,
    E: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    NEURONS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    expert = tl.program_id(0)
    token = tl.arange(0, TOKENS)
    chose = tl.load(mask + token * n + expert, token < num_tokens, other=0) > 0
    if tl.sum(chose.to(tl.int32), 0) == 0:
        return
    neurons = tl.program_id(1) * NEURONS + tl.arange(0, NEURONS)
    exists = neurons < E
    neuron = (expert * E + neurons).to(tl.int64)  # row of up, gate and down
    rows = tl.where(chose, token, 0)  # those of other tokens are not there, or not added below
    hidden = hidden_neurons(
        z + rows[:, None] * d_model,
        up,
        gate,
        up_bias,
        gate_bias,
        neuron,
        exists,
        d_model,
        ACTIVATION,
        GATED,
        UP_BIAS,
        GATE_BIAS,
        BLOCK_K,
        PRECISION,
    )
    columns = tl.arange(0, BLOCK_N)
    for column in range(0, d_out, BLOCK_N):
        inside = column + columns < d_out
        w = tl.load(
            down + neuron[:, None] * d_out + column + columns[None, :],
            exists[:, None] & inside[None, :],
            other=0.0,
        )
        y = tl.dot(hidden, w, input_precision=PRECISION)
        places = out + token[:, None] * d_out + column + columns[None, :]
        tl.atomic_add(places, y, chose[:, None] & inside[None, :], sem="relaxed")
