"""The layer for a few tokens, as in decoding: bound by the bytes of the selected experts.

    route     the router's hidden neurons
    activate  scores and dynamic-k, by every program for itself, or a given mask; then a block of a
              chosen expert's hidden neurons
    add       some columns of the output, of a part of the chosen experts
    sum       the parts, in fp32

Each weight of a chosen expert is read once for all tokens, others are not read: time follows the
executed share.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from d2dmoe.backend import DECODE_TOKENS
from d2dmoe.kernels.activations import relu
from d2dmoe.kernels.arguments import (
    aligned,
    expert_arguments,
    or_placeholder,
    padded,
    precision,
    selection_arguments,
)
from d2dmoe.kernels.launch import processors
from d2dmoe.kernels.routing import router_choice, router_down_weights
from d2dmoe.kernels.tiles import check_precision, hidden_neurons, weight_block
from d2dmoe.weights import ExpertWeights, RouterWeights

MAX_TOKENS = DECODE_TOKENS
ELEMENTS = 2048  # of the router's first matrix that a program has in registers
PER_PROCESSOR = 2  # programs of `_activate` for a multiprocessor
ROWS = 128  # of W2, that a program of `_add` multiplies at a time
COLUMNS = 64  # of the output, that a program of `_add` or `_sum` makes
PARTS = 16  # of the experts' sum, each of every so-manieth chosen expert


def run(
    z: Tensor,
    weights: ExpertWeights,
    mask: Tensor | None = None,
    router: RouterWeights | None = None,
    tau: float = 0.0,
) -> Tensor:
    """As `persistent.run`, for up to `MAX_TOKENS` tokens."""
    pdl = _launches_early(z.device)
    hidden, listed = _activations(z, weights, mask, router, tau, pdl)
    return _outputs(hidden, listed, weights, pdl)


def _activations(
    z: Tensor,
    weights: ExpertWeights,
    mask: Tensor | None,
    router: RouterWeights | None,
    tau: float,
    pdl: bool,
) -> tuple[Tensor, Tensor]:
    """Hidden neurons of the chosen experts, one after the other, [tokens, n, e], zero for tokens
    that did not choose the expert; and those experts, after their number, int32 [1 + n]. What is
    beyond them is undefined."""
    tokens, n, e = len(z), weights.num_experts, weights.expert_size
    hidden = torch.empty(tokens, n, e, dtype=z.dtype, device=z.device)
    listed = torch.empty(1 + n, dtype=torch.int32, device=z.device)
    # Neurons that a program has at a time, and bytes of their rows in each of five stages, which
    # must fit in shared memory, as must as many numbers of the tokens. One token chooses few
    # experts: smaller pieces occupy all programs.
    most, stage = (32, 512) if tokens == 1 else (64, 256)
    neurons = min(most, padded(e))
    pieces = triton.cdiv(e, neurons)
    _activate[(min(n * pieces, PER_PROCESSOR * processors(z.device)),)](
        z=z,
        routed=z if router is None else _route(z, router, pdl),
        hidden=hidden,
        listed=listed,
        tokens=tokens,
        h=0 if router is None else router.up.shape[0],
        **selection_arguments(mask, router, tau, n, z),
        **expert_arguments(weights, z),
        up_scale=or_placeholder(weights.up_scale, z),
        gate_scale=or_placeholder(weights.gate_scale, z),
        SCALED=weights.up_scale is not None,
        PIECES=pieces,
        TOKENS=MAX_TOKENS,
        NEURONS=neurons,
        BLOCK_K=stage // max(weights.up.itemsize, z.itemsize // 2),
        PRECISION=precision(z),
        PDL=pdl,
        PREFETCH=pdl and tokens == 1 and aligned(weights.down),
        num_warps=4,
        num_stages=5,
        **_early(pdl and router is not None),
    )
    return hidden, listed


def _outputs(hidden: Tensor, listed: Tensor, weights: ExpertWeights, pdl: bool) -> Tensor:
    """The outputs [tokens, d_out] of what `_activations` gives."""
    tokens, n, e = hidden.shape
    d_out, number = weights.d_out, min(n, PARTS)
    parts = hidden.new_empty(number, tokens, d_out, dtype=torch.float32)
    _add[(triton.cdiv(d_out, COLUMNS), number)](
        hidden=hidden,
        listed=listed,
        down=weights.down,
        parts=parts,
        tokens=tokens,
        n=n,
        D_OUT=d_out,
        E=e,
        TOKENS=MAX_TOKENS,
        ROWS=min(ROWS, padded(e)),
        COLUMNS=COLUMNS,
        PRECISION=precision(hidden),
        PDL=pdl,
        num_warps=4,
        num_stages=2,
        **_early(pdl),
    )
    out = hidden.new_empty(tokens, d_out)
    _sum[(triton.cdiv(d_out, COLUMNS), tokens)](
        parts=parts,
        down_bias=or_placeholder(weights.down_bias, parts),
        down_scale=or_placeholder(weights.down_scale, parts),
        out=out,
        tokens=tokens,
        number=number,
        D_OUT=d_out,
        DOWN_BIAS=weights.down_bias is not None,
        SCALED=weights.down_scale is not None,
        PARTS=triton.next_power_of_2(number),
        COLUMNS=COLUMNS,
        PDL=pdl,
        num_warps=4,
        **_early(pdl),
    )
    return out


def _route(z: Tensor, router: RouterWeights, pdl: bool) -> Tensor:
    """The router's hidden neurons, [tokens, h]."""
    h, d_model = router.up.shape
    hidden = torch.empty(len(z), h, dtype=z.dtype, device=z.device)
    width = triton.next_power_of_2(d_model)
    neurons = max(1, ELEMENTS // width)
    _router_hidden[(triton.cdiv(h, neurons), len(z))](
        z=z,
        up=router.up,
        up_bias=router.up_bias,
        hidden=hidden,
        d_model=d_model,
        h=h,
        NEURONS=neurons,
        WIDTH=width,
        PDL=pdl,
        num_warps=4,
    )
    return hidden


@cache
def _launches_early(device: torch.device) -> bool:
    """Whether a kernel may be launched before the one ahead of it has ended (programmatic dependent
    launch): it waits itself, by `gdc_wait`, before it reads what that one wrote."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _early(pdl: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if pdl else {}  # Triton's interpreter does not know the option


@triton.jit
def _router_hidden(
    z,
    up,
    up_bias,
    hidden,
    d_model,
    h,
    NEURONS: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Some neurons of a token; too little work for the tensor cores."""
    if PDL:
        gdc_launch_dependents()
    token, columns = tl.program_id(1), tl.arange(0, WIDTH)
    neurons = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    inside = (neurons < h)[:, None] & (columns < d_model)[None, :]
    w = tl.load(up + neurons[:, None] * d_model + columns[None, :], inside, other=0.0)
    x = tl.load(z + token * d_model + columns, columns < d_model, other=0.0)
    value = tl.sum(w.to(tl.float32) * x.to(tl.float32)[None, :], 1)
    value += tl.load(up_bias + neurons, neurons < h, other=0.0).to(tl.float32)
    value = relu(value).to(hidden.dtype.element_ty)
    tl.store(hidden + token * h + neurons, value, neurons < h)


PREFETCH_BULK = tl.constexpr("""{
    .reg .pred first;
    .reg .u32 thread;
    mov.u32 thread, %tid.x;
    setp.eq.u32 first, thread, 0;
    @first cp.async.bulk.prefetch.L2.global [$1], $2;
    mov.u32 $0, 0;
}""")


@triton.jit
def prefetch(start, count):
    """Let the L2 cache fetch `count` numbers from the pointer `start` on, both multiples of 16
    bytes: one instruction, of Hopper's GPUs and later ones, that nobody waits for."""
    size = count * (start.dtype.element_ty.primitive_bitwidth // 8)
    args = [start, size]
    tl.inline_asm_elementwise(PREFETCH_BULK, "=r,l,r", args, tl.int32, is_pure=False, pack=1)


@triton.jit
def _activate(
    z,
    mask,
    routed,
    router_down,
    router_down_bias,
    up,
    gate,
    down,
    up_bias,
    gate_bias,
    up_scale,
    gate_scale,
    hidden,
    listed,
    tokens,
    tau,
    h,
    n,
    D_MODEL: tl.constexpr,
    D_OUT: tl.constexpr,
    ROUTED: tl.constexpr,
    SCORE: tl.constexpr,
    E: tl.constexpr,
    PIECES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    TOKENS: tl.constexpr,
    NEURONS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    check_precision(PRECISION)
    row, experts = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    real = (row < tokens)[:, None]
    if PDL:
        gdc_launch_dependents()
    if ROUTED:
        hs = tl.arange(0, WIDTH_H)
        w, bias = router_down_weights(router_down, router_down_bias, hs, experts, h, n)
        if PDL:
            gdc_wait()  # what follows needs what the kernel before wrote
        values = tl.load(
            routed + row[:, None] * h + hs[None, :], real & (hs < h)[None, :], other=0.0
        )
        chosen = router_choice(values, w, bias, experts, tau, n, SCORE, PRECISION)
        chosen = (chosen & real).to(tl.int32)
    else:
        inside = real & (experts < n)[None, :]
        chosen = tl.load(mask + row[:, None] * n + experts[None, :], inside, other=0).to(tl.int32)
    by_any = tl.max(chosen, 0)
    ends = tl.cumsum(by_any, 0)
    number = tl.sum(by_any, 0)
    program, programs = tl.program_id(0), tl.num_programs(0)
    if program == 0:
        tl.store(listed, number)
        tl.store(listed + ends, experts, by_any > 0)
    for piece in range(program, number * PIECES, programs):
        place = piece // PIECES  # in the list of chosen experts
        expert = tl.sum((ends <= place).to(tl.int32), 0)
        chose = tl.sum(tl.where(experts[None, :] == expert, chosen, 0), 1) > 0
        first = (piece % PIECES) * NEURONS
        value = hidden_neurons(
            rows=z + tl.where(chose, row, 0)[:, None] * D_MODEL,
            up=up,
            gate=gate,
            up_bias=up_bias,
            gate_bias=gate_bias,
            up_scale=up_scale,
            gate_scale=gate_scale,
            expert=expert,
            first=first,
            D_MODEL=D_MODEL,
            E=E,
            NEURONS=NEURONS,
            ACTIVATION=ACTIVATION,
            GATED=GATED,
            UP_BIAS=UP_BIAS,
            GATE_BIAS=GATE_BIAS,
            SCALED=SCALED,
            BLOCK_K=BLOCK_K,
            PRECISION=PRECISION,
            TMA=False,
        )
        if PREFETCH:  # for `_add`, while there is nothing to read in between
            count = tl.minimum(E - first, NEURONS)
            prefetch(down + (tl.cast(expert, tl.int64) * E + first) * D_OUT, count * D_OUT)
        value = tl.where(chose[:, None], value, tl.zeros_like(value))
        neurons = first + tl.arange(0, NEURONS)
        places = hidden + (row[:, None] * n + place) * E + neurons[None, :]
        tl.store(places, value, real & (neurons < E)[None, :])


@triton.jit
def _add(
    hidden,
    listed,
    down,
    parts,
    tokens,
    n,
    D_OUT: tl.constexpr,
    E: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    check_precision(PRECISION)
    row, rows = tl.arange(0, TOKENS), tl.arange(0, ROWS)
    real = (row < tokens)[:, None]
    column, part = tl.program_id(0) * COLUMNS, tl.program_id(1)
    y = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    for place in range(part, tl.load(listed), tl.num_programs(1)):
        expert = tl.load(listed + 1 + place)
        for first in range(0, E, ROWS):
            w = weight_block(down, expert, first, column, E, D_OUT, ROWS, COLUMNS, False)
            values = hidden + (row[:, None] * n + place) * E + first + rows[None, :]
            x = tl.load(values, real & (first + rows < E)[None, :], other=0.0)
            y = tl.dot(x, w.to(x.dtype), y, input_precision=PRECISION)
    columns = column + tl.arange(0, COLUMNS)
    places = parts + (part * tokens + row[:, None]) * D_OUT + columns[None, :]
    tl.store(places, y, real & (columns < D_OUT)[None, :])


@triton.jit
def _sum(
    parts,
    down_bias,
    down_scale,
    out,
    tokens,
    number,
    D_OUT: tl.constexpr,
    DOWN_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    part, token = tl.arange(0, PARTS), tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (part < number)[:, None] & (columns < D_OUT)[None, :]
    places = parts + (part[:, None] * tokens + token) * D_OUT + columns[None, :]
    y = tl.sum(tl.load(places, inside, other=0.0), 0)
    if SCALED:
        y *= tl.load(down_scale + columns, columns < D_OUT, other=0.0).to(tl.float32)
    if DOWN_BIAS:
        y += tl.load(down_bias + columns, columns < D_OUT, other=0.0).to(tl.float32)
    tl.store(out + token * D_OUT + columns, y.to(out.dtype.element_ty), columns < D_OUT)
