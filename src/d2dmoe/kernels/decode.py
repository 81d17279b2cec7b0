"""The layer for a few tokens, as in decoding: bound by the bytes of the selected experts.

    hidden    the router's hidden neurons, some by each program
    select    scores and dynamic-k, or a given mask; the list of experts that any token chose
    experts   each piece of work is a block of a listed expert's neurons: their rows of W1, the gate
              and W2 are read once for all tokens, and their outputs added in fp32

Experts that no token chose cost nothing, so time follows the executed share.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2dmoe.kernels.experts import Experts, RouterWeights
from d2dmoe.kernels.launch import processors
from d2dmoe.kernels.routing import precision, router_choice, router_hidden
from d2dmoe.kernels.tiles import activate, hidden_neurons, weight_block

MAX_TOKENS = 16
FEW = 4  # up to so many tokens, products of vectors are faster than those of the tensor cores
NEURONS = 32  # of a piece of work for more than FEW tokens
ELEMENTS = 8192  # of a matrix that a program holds in registers for FEW tokens
PER_PROCESSOR = 8  # programs for each multiprocessor


HID, HIDS = 256, 4


class Active(NamedTuple):
    """The experts that any of a few tokens chose."""

    mask: Tensor  # uint8 [tokens, n]
    experts: Tensor  # int32 [n]: those chosen first, ascending; the rest is undefined
    number: Tensor  # int32 [1]: how many
    sums: Tensor  # fp32 [tokens, d_out]: zeros, for the outputs to be added to


def _empty_active(z: Tensor, n: int, d_out: int, mask: Tensor | None = None) -> Active:
    if mask is None:
        mask = torch.empty(len(z), n, dtype=torch.uint8, device=z.device)
    lists = torch.empty(n + 1, dtype=torch.int32, device=z.device)
    sums = torch.empty(len(z), d_out, dtype=torch.float32, device=z.device)
    return Active(mask, lists[1:], lists[:1], sums)


def select(z: Tensor, router: RouterWeights, tau: float, d_out: int) -> Active:
    """Dynamic-k of up to `MAX_TOKENS` tokens z [tokens, d_model], for experts of d_out outputs."""
    tokens, d_model = z.shape
    n, h = router.down.shape
    hidden = torch.empty(tokens, h, dtype=z.dtype, device=z.device)
    _hidden[(triton.cdiv(h, 16),)](
        z,
        router.up,
        router.up_bias,
        hidden,
        tokens,
        d_model,
        h,
        TOKENS=MAX_TOKENS,
        NEURONS=16,
        BLOCK_K=HID,
        PRECISION=precision(z),
        num_warps=4,
        num_stages=HIDS,
    )
    active = _empty_active(z, n, d_out)
    _select[(1,)](
        hidden,
        router.down,
        router.down_bias,
        *active,
        tokens,
        tau,
        h,
        n,
        d_out,
        REGRESSION=router.kind == "regression",
        PRECISION=precision(z),
        TOKENS=MAX_TOKENS,
        WIDTH_H=max(16, triton.next_power_of_2(h)),
        WIDTH=max(16, triton.next_power_of_2(n)),
        num_warps=4,
    )
    return active


def active_of(mask: Tensor, d_out: int) -> Active:
    """The experts of a mask, boolean [tokens, n], of up to `MAX_TOKENS` tokens."""
    active = _empty_active(mask, mask.shape[1], d_out, mask.view(torch.uint8))
    _list_active[(1,)](*active, len(mask), mask.shape[1], d_out, TOKENS=MAX_TOKENS, WIDTH=128)
    return active


def decode(z: Tensor, active: Active, experts: Experts) -> Tensor:
    """The layer's output [tokens, d_out] for z [tokens, d_model], contiguous."""
    tokens, e = len(z), experts.expert_size
    width = triton.next_power_of_2(max(experts.d_model, experts.d_out))
    arguments = (
        z,
        *active,
        experts.up,
        experts.up if experts.gate is None else experts.gate,
        experts.down,
        active.sums if experts.up_bias is None else experts.up_bias,
        active.sums if experts.gate_bias is None else experts.gate_bias,
        tokens,
        experts.num_experts,
        experts.d_model,
        experts.d_out,
    )
    form = {
        "E": e,
        "ACTIVATION": experts.activation,
        "GATED": experts.gate is not None,
        "UP_BIAS": experts.up_bias is not None,
        "GATE_BIAS": experts.gate_bias is not None,
    }
    programs = PER_PROCESSOR * processors(z.device)
    if tokens <= FEW and width <= ELEMENTS:
        neurons = min(ELEMENTS // width, triton.next_power_of_2(e))
        _decode_few[(programs,)](
            *arguments,
            **form,
            TOKENS=triton.next_power_of_2(tokens),
            NEURONS=neurons,
            PIECES=triton.cdiv(e, neurons),
            WIDTH=width,
            num_warps=4,
        )
    else:
        _decode[(programs,)](
            *arguments,
            **form,
            TOKENS=MAX_TOKENS,
            NEURONS=NEURONS,
            PIECES=triton.cdiv(e, NEURONS),
            BLOCK_K=256,
            BLOCK_N=128,
            PRECISION=precision(z),
            num_warps=4,
            num_stages=3,
        )
    if experts.down_bias is None:
        return active.sums.to(z.dtype)
    out = torch.empty_like(active.sums, dtype=z.dtype)
    return torch.add(active.sums, experts.down_bias, out=out)


@triton.jit
def _hidden(
    z,
    up,
    up_bias,
    hidden,
    tokens,
    d_model,
    h,
    TOKENS: tl.constexpr,
    NEURONS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.arange(0, TOKENS)
    hs = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    value = router_hidden(z, rows, rows < tokens, up, up_bias, hs, d_model, h, BLOCK_K, PRECISION)
    inside = (rows < tokens)[:, None] & (hs < h)[None, :]
    tl.store(hidden + rows[:, None] * h + hs[None, :], value, inside)


@triton.jit
def _select(
    hidden,
    down,
    down_bias,
    mask,
    active,
    number,
    sums,
    tokens,
    tau,
    h,
    n,
    d_out,
    REGRESSION: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH: tl.constexpr,
):
    rows, hs, experts = tl.arange(0, TOKENS), tl.arange(0, WIDTH_H), tl.arange(0, WIDTH)
    real = rows < tokens
    values = tl.load(
        hidden + rows[:, None] * h + hs[None, :], real[:, None] & (hs < h)[None, :], other=0.0
    )
    chosen = router_choice(values, hs, down, down_bias, experts, tau, h, n, REGRESSION, PRECISION)
    chosen = (chosen & real[:, None]).to(tl.int32)
    places = mask + rows[:, None] * n + experts[None, :]
    tl.store(places, chosen.to(tl.uint8), real[:, None] & (experts < n)[None, :])
    tl.store(number, _append_active(chosen, experts, active, 0))
    _clear(sums, tokens * d_out)


@triton.jit
def _list_active(
    mask, active, number, sums, tokens, n, d_out, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):
    rows = tl.arange(0, TOKENS)
    found = 0
    for first in range(0, n, WIDTH):
        experts = first + tl.arange(0, WIDTH)
        inside = (rows < tokens)[:, None] & (experts < n)[None, :]
        chosen = tl.load(mask + rows[:, None] * n + experts[None, :], inside, other=0)
        found = _append_active(chosen.to(tl.int32), experts, active, found)
    tl.store(number, found)
    _clear(sums, tokens * d_out)


@triton.jit
def _append_active(chosen, experts, active, found):
    """List the experts [N] that any token chose, [TOKENS, N], after those found; how many then."""
    any_token = tl.max(chosen, 0)
    tl.store(active + found + tl.cumsum(any_token, 0) - 1, experts, any_token > 0)
    return found + tl.sum(any_token, 0)


@triton.jit
def _clear(values, number):
    places = tl.arange(0, 2048)
    for first in range(0, number, 2048):
        tl.store(values + first + places, tl.zeros((2048,), tl.float32), first + places < number)


@triton.jit
def _decode_few(
    z,
    mask,
    active,
    number,
    sums,
    up,
    gate,
    down,
    up_bias,
    gate_bias,
    tokens,
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
    PIECES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """All weights of a piece are asked for at once, then used for one token after the other."""
    columns = tl.arange(0, WIDTH)
    pieces = tl.load(number) * PIECES
    for piece in range(tl.program_id(0), pieces, tl.num_programs(0)):
        expert = tl.load(active + piece // PIECES)
        first = (piece % PIECES) * NEURONS
        neurons = first + tl.arange(0, NEURONS)
        u = weight_block(up, expert, first, 0, E, d_model, NEURONS, WIDTH, False)
        if GATED:
            g = weight_block(gate, expert, first, 0, E, d_model, NEURONS, WIDTH, False)
        d = weight_block(down, expert, first, 0, E, d_out, NEURONS, WIDTH, False)
        for token in tl.static_range(TOKENS):
            if tl.load(mask + token * n + expert, token < tokens, other=0) > 0:
                x = tl.load(z + token * d_model + columns, columns < d_model, other=0.0)
                x = x.to(tl.float32)[None, :]
                hidden = tl.sum(u.to(tl.float32) * x, 1)
                if UP_BIAS:
                    hidden += tl.load(up_bias + expert * E + neurons, neurons < E, other=0.0)
                if GATED:
                    gated = tl.sum(g.to(tl.float32) * x, 1)
                    if GATE_BIAS:
                        gated += tl.load(gate_bias + expert * E + neurons, neurons < E, other=0.0)
                    hidden *= activate(gated, ACTIVATION)
                else:
                    hidden = activate(hidden, ACTIVATION)
                y = tl.sum(hidden[:, None] * d.to(tl.float32), 0)
                places = sums + token * d_out + columns
                tl.atomic_add(places, y, columns < d_out, sem="relaxed")


@triton.jit
def _decode(
    z,
    mask,
    active,
    number,
    sums,
    up,
    gate,
    down,
    up_bias,
    gate_bias,
    tokens,
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
    PIECES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    token = tl.arange(0, TOKENS)
    columns = tl.arange(0, BLOCK_N)
    pieces = tl.load(number) * PIECES
    for piece in range(tl.program_id(0), pieces, tl.num_programs(0)):
        expert = tl.load(active + piece // PIECES)
        chose = tl.load(mask + token * n + expert, token < tokens, other=0) > 0
        first = (piece % PIECES) * NEURONS
        hidden = hidden_neurons(
            z + tl.where(chose, token, 0)[:, None] * d_model,
            up,
            gate,
            up_bias,
            gate_bias,
            expert,
            first,
            d_model,
            E,
            NEURONS,
            ACTIVATION,
            GATED,
            UP_BIAS,
            GATE_BIAS,
            BLOCK_K,
            PRECISION,
            False,
        )
        for column in range(0, d_out, BLOCK_N):
            w = weight_block(down, expert, first, column, E, d_out, NEURONS, BLOCK_N, False)
            y = tl.dot(hidden, w, input_precision=PRECISION)
            places = sums + token[:, None] * d_out + column + columns[None, :]
            wanted = chose[:, None] & (column + columns < d_out)[None, :]
            tl.atomic_add(places, y, wanted, sem="relaxed")
