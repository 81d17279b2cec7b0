"""The whole layer in one persistent kernel: router, selection, lists, experts.

The work is a sequence of items. An item of R_s routes a block of tokens of superblock s, one of F_s
sets a block of its outputs to b2, and one of T_s runs a tile of its experts; with A superblocks
that are routed ahead:

    R_0 F_0  R_1 F_1  …  R_A F_A  W  T_0  R_A+1 F_A+1  T_1  …

An item of W, where the tokens are many, puts a piece of W2's columns in the order in which threads
add 16 bytes at once; programs that run them would otherwise wait for R_0.

Programs take items in this order. Routing is bound by memory and runs beside the experts of earlier
superblocks, bound by the L2 cache and the tensor cores. How many tiles a superblock has is known
once it is routed: who reaches T_s waits for R_s and F_s, and never in vain, since items that came
before were taken by programs that run.

Tokens belong to several experts, so several programs add into one row: atomically, in an order that
differs from run to run. In the deterministic variant a program has a small superblock to itself,
takes its tiles in order and adds without atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from d2dmoe.kernels.activations import relu
from d2dmoe.kernels.arguments import (
    aligned,
    expert_arguments,
    or_placeholder,
    padded,
    precision,
    selection_arguments,
)
from d2dmoe.kernels.launch import Launch
from d2dmoe.kernels.routing import append, router_choice, router_down_weights, set_rows
from d2dmoe.kernels.tiles import (
    add_outputs,
    check_precision,
    fence_for_tma,
    hidden_neurons,
    order_columns,
)
from d2dmoe.weights import ExpertWeights, RouterWeights

CHUNK = 128  # neurons, of those that one tile's accumulators can hold
BLOCK = 128  # most tokens of a routing item
PER_NEURON = 4  # tokens for each of the experts' neurons from which on W2 is put in order
PIECE = 8192  # pairs of W2's numbers that an item puts in order
MASK_WIDTH = 64  # experts of a mask that are looked at together


def run(
    z: Tensor,
    weights: ExpertWeights,
    launch: Launch,
    mask: Tensor | None = None,
    router: RouterWeights | None = None,
    tau: float = 0.0,
) -> Tensor:
    """The sum of the selected experts, plus down_bias: [tokens, d_out].

    Args:
        z: tokens, [tokens, d_model], contiguous.
        weights: of z's dtype.
        launch: how the kernel is launched.
        mask: boolean [tokens, n], contiguous; else the router selects.
        router: of z's dtype; at most 128 hidden neurons and experts.
        tau: threshold of dynamic-k.
    """
    n, chunk = weights.num_experts, min(CHUNK, padded(weights.expert_size))
    chunks = triton.cdiv(weights.expert_size, chunk)
    block = min(BLOCK, launch.tile)
    blocks = triton.cdiv(len(z), block)
    per_super = triton.cdiv(blocks, triton.cdiv(len(z), launch.superblock))  # all alike
    superblock, supers = block * per_super, triton.cdiv(blocks, per_super)
    out = z.new_empty(len(z), weights.d_out)
    if launch.deterministic:
        programs = supers
    else:
        programs = min(launch.programs(z.device), blocks * (2 + n * chunks))
    _layer[(programs,)](
        z=z,
        out=out,
        tokens=torch.empty(supers, n, superblock, dtype=torch.int32, device=z.device),
        # The next item, pieces of W2 that are in order, and by superblock the blocks that are
        # routed or filled, and each expert's tokens.
        state=torch.zeros(2 + supers * (1 + n), dtype=torch.int32, device=z.device),
        num_tokens=len(z),
        blocks=blocks,
        supers=supers,
        superblock=superblock,
        **selection_arguments(mask, router, tau, n, out),
        router_up_bias=out if router is None else router.up_bias,
        H=0 if router is None else router.up.shape[0],
        **expert_arguments(weights, out) | _matrices(weights, router, launch, chunk, out),
        down_bias=or_placeholder(weights.down_bias, out),
        DOWN_BIAS=weights.down_bias is not None,
        BLOCK=block,
        CHUNK=chunk,
        CHUNKS=chunks,
        MASK_WIDTH=min(MASK_WIDTH, padded(n)),
        PRECISION=precision(z),
        PIECE=PIECE,
        **_launched(launch),
    )
    return out


def _launched(launch: Launch) -> dict[str, Any]:
    """What the launch alone decides."""
    return {
        "DETERMINISTIC": launch.deterministic,
        "AHEAD": 0 if launch.deterministic else launch.ahead,
        "TILE": launch.tile,
        "BLOCK_K": launch.block_k,
        "BLOCK_N": launch.block_n,
        "WARPS": min(launch.num_warps, launch.tile // 16),
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "maxnreg": launch.registers,
    }


def _matrices(
    weights: ExpertWeights,
    router: RouterWeights | None,
    launch: Launch,
    chunk: int,
    out: Tensor,
) -> dict[str, Any]:
    """The matrices as blocks of them are loaded: where they are aligned, by the tensor memory
    accelerator. And W2 as pairs, to be put into `down` in the order in which tiles read it."""
    group = _group(len(out), weights, launch)
    down = torch.empty_like(weights.down) if group else weights.down
    gate = or_placeholder(weights.gate, weights.up)
    router_up = weights.up if router is None else router.up[None]
    width_h = padded(0 if router is None else router.up.shape[0])
    tma = launch.tma and all(map(aligned, (weights.up, gate, weights.down, router_up)))

    def loaded(w: Tensor, rows: int, columns: int) -> Tensor | TensorDescriptor:
        return TensorDescriptor.from_tensor(w, [1, rows, columns]) if tma else w

    return {
        "router_up": loaded(router_up, width_h, launch.block_k),
        "up": loaded(weights.up, chunk, launch.block_k),
        "gate": loaded(gate, chunk, launch.block_k),
        "down": loaded(down, chunk, launch.block_n),
        "TMA": tma,
        "FENCE": tma and not knobs.runtime.interpret,
        "down_pairs": _pairs(weights.down) if group else out,
        "ordered_pairs": _pairs(down) if group else out,
        "pairs": down.numel() // 2 if group else 0,
        "GROUP": group,
    }


def _group(tokens: int, weights: ExpertWeights, launch: Launch) -> int:
    """How many of W2's columns are reordered together, so that a thread of the tensor cores has 16
    bytes of neighbours; 0 where that gains less than it costs."""
    group = 64 // weights.down.itemsize
    few = tokens < PER_NEURON * weights.num_experts * weights.expert_size
    return 0 if few or launch.deterministic or weights.d_out % group else group


def _pairs(w: Tensor) -> Tensor:
    """Pairs of neighbours, each one integer."""
    return w.view(torch.int64 if w.itemsize == 4 else torch.int32)


@triton.jit
def _next(ticket, state, DETERMINISTIC: tl.constexpr):
    """The number of the item to do after that of the ticket."""
    if DETERMINISTIC:
        return ticket + 1
    else:
        return tl.atomic_add(state, 1, sem="relaxed")


@triton.jit
def _finish(done):
    """Count an item whose results other programs read."""
    tl.debug_barrier()  # all of the program's threads have written
    tl.atomic_add(done, 1, sem="release")


@triton.jit
def _await(done, number):
    """Wait until so many items are finished."""
    while tl.atomic_add(done, 0, sem="acquire") < number:
        pass


@triton.jit
def _route_block(
    block,
    z,
    mask,
    router_up,
    router_up_bias,
    router_down,
    router_down_bias,
    tokens,
    counts,
    num_tokens,
    tau,
    n,
    superblock,
    D_MODEL: tl.constexpr,
    H: tl.constexpr,
    ROUTED: tl.constexpr,
    SCORE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH: tl.constexpr,
    MASK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):
    rows = block * BLOCK + tl.arange(0, BLOCK)
    real = rows < num_tokens
    if ROUTED:
        hs, experts = tl.arange(0, WIDTH_H), tl.arange(0, WIDTH)
        hidden = hidden_neurons(  # the router's first layer is as an expert's
            rows=z + tl.where(real, rows, 0).to(tl.int64)[:, None] * D_MODEL,
            up=router_up,
            gate=router_up,
            up_bias=router_up_bias,
            gate_bias=router_up_bias,
            up_scale=router_up_bias,
            gate_scale=router_up_bias,
            expert=0,
            first=0,
            D_MODEL=D_MODEL,
            E=H,
            NEURONS=WIDTH_H,
            ACTIVATION=relu,
            GATED=False,
            UP_BIAS=True,
            GATE_BIAS=False,
            SCALED=False,
            BLOCK_K=BLOCK_K,
            PRECISION=PRECISION,
            TMA=TMA,
        )
        w, bias = router_down_weights(router_down, router_down_bias, hs, experts, H, n)
        chosen = router_choice(hidden, w, bias, experts, tau, n, SCORE, PRECISION)
        chosen = (chosen & real[:, None]).to(tl.int32)
        append(chosen, rows, experts, tokens, counts, n, superblock)
    else:
        for first in range(0, n, MASK_WIDTH):
            experts = first + tl.arange(0, MASK_WIDTH)
            inside = real[:, None] & (experts < n)[None, :]
            places = mask + rows[:, None].to(tl.int64) * n + experts[None, :]
            chosen = tl.load(places, inside, other=0).to(tl.int32)
            append(chosen, rows, experts, tokens, counts, n, superblock)


@triton.jit
def _tile_tokens(tile, count, tokens, superblock, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """A tile's expert, its tokens int64 [TILE], and which of these are real."""
    row, experts = tl.arange(0, TILE), tl.arange(0, WIDTH)
    tiles = (count + TILE - 1) // TILE
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum((ends <= tile).to(tl.int32), 0)
    here = experts == expert
    place = (tile - tl.sum(tl.where(here, ends - tiles, 0), 0)) * TILE + row
    real = place < tl.sum(tl.where(here, count, 0), 0)
    # Past the L1 cache, which knows nothing of other programs' writes.
    listed = tokens + tl.cast(expert, tl.int64) * superblock + place
    token = tl.load(listed, real, other=0, cache_modifier=".cg").to(tl.int64)
    return expert, token, real


@triton.jit
def _run_tile(
    piece,
    count,
    z,
    up,
    gate,
    down,
    up_bias,
    gate_bias,
    out,
    tokens,
    superblock,
    D_MODEL: tl.constexpr,
    D_OUT: tl.constexpr,
    E: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    GROUP: tl.constexpr,
    WARPS: tl.constexpr,
):
    """A chunk of the neurons of an expert for one tile; the pieces of a superblock are counted tile
    by tile and expert by expert. `count` [WIDTH] and `tokens` are the superblock's."""
    tile, first = piece // CHUNKS, (piece % CHUNKS) * CHUNK
    expert, token, real = _tile_tokens(tile, count, tokens, superblock, TILE, WIDTH)
    hidden = hidden_neurons(
        rows=z + token[:, None] * D_MODEL,
        up=up,
        gate=gate,
        up_bias=up_bias,
        gate_bias=gate_bias,
        up_scale=up_bias,
        gate_scale=gate_bias,
        expert=expert,
        first=first,
        D_MODEL=D_MODEL,
        E=E,
        NEURONS=CHUNK,
        ACTIVATION=ACTIVATION,
        GATED=GATED,
        UP_BIAS=UP_BIAS,
        GATE_BIAS=GATE_BIAS,
        SCALED=False,
        BLOCK_K=BLOCK_K,
        PRECISION=PRECISION,
        TMA=TMA,
    )
    add_outputs(
        hidden=hidden,
        down=down,
        out=out,
        token=tl.where(real, token, -1),
        expert=expert,
        first=first,
        D_OUT=D_OUT,
        E=E,
        NEURONS=CHUNK,
        BLOCK_N=BLOCK_N,
        PRECISION=PRECISION,
        TMA=TMA,
        ATOMIC=not DETERMINISTIC,
        GROUP=GROUP,
        WARPS=WARPS,
    )
    if DETERMINISTIC:
        tl.debug_barrier()  # the next tile may add to the same rows by other threads


@triton.jit
def _order(
    ticket,
    base,
    state,
    down_pairs,
    ordered_pairs,
    pairs,
    GROUP: tl.constexpr,
    PIECE: tl.constexpr,
    FENCE: tl.constexpr,
):
    """The items of W, from number `base` on; waits until all are done. Returns the next item, and
    the number of the first after them. Programs of the deterministic variant have none."""
    ordered, number = state + 1, tl.cdiv(pairs, PIECE)
    while ticket < base + number:
        order_columns(down_pairs, ordered_pairs, (ticket - base) * PIECE, pairs, GROUP, PIECE)
        _finish(ordered)
        ticket = _next(ticket, state, False)
    _await(ordered, number)
    if FENCE:
        fence_for_tma()
    return ticket, base + number


@triton.jit
def _layer(
    z,
    mask,
    router_up,
    router_up_bias,
    router_down,
    router_down_bias,
    up,
    gate,
    down,
    down_pairs,
    ordered_pairs,
    up_bias,
    gate_bias,
    down_bias,
    out,
    tokens,
    state,
    num_tokens,
    tau,
    n,
    pairs,
    blocks,
    supers,
    superblock,
    D_MODEL: tl.constexpr,
    D_OUT: tl.constexpr,
    H: tl.constexpr,
    ROUTED: tl.constexpr,
    SCORE: tl.constexpr,
    E: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    DOWN_BIAS: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH: tl.constexpr,
    MASK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    GROUP: tl.constexpr,
    FENCE: tl.constexpr,
    PIECE: tl.constexpr,
    WARPS: tl.constexpr,
):
    check_precision(PRECISION)
    tl.static_assert(GROUP == 0 or GROUP == 16 or GROUP == 32, "GROUP must be 0, 16 or 32")
    first_super, last_super = 0, supers
    if DETERMINISTIC:
        first_super, last_super = tl.program_id(0), tl.program_id(0) + 1
    ready, counts = state + 2, state + 2 + supers
    per_super = superblock // BLOCK
    experts = tl.arange(0, WIDTH)
    base = 0  # items before those at hand
    ticket = _next(-1, state, DETERMINISTIC)
    for step in range(first_super, last_super + AHEAD):
        if step < last_super:
            number = tl.minimum(blocks - step * per_super, per_super)
            while ticket < base + number:
                _route_block(
                    block=step * per_super + ticket - base,
                    z=z,
                    mask=mask,
                    router_up=router_up,
                    router_up_bias=router_up_bias,
                    router_down=router_down,
                    router_down_bias=router_down_bias,
                    tokens=tokens + tl.cast(step * n, tl.int64) * superblock,
                    counts=counts + step * n,
                    num_tokens=num_tokens,
                    tau=tau,
                    n=n,
                    superblock=superblock,
                    D_MODEL=D_MODEL,
                    H=H,
                    ROUTED=ROUTED,
                    SCORE=SCORE,
                    BLOCK=BLOCK,
                    BLOCK_K=BLOCK_K,
                    WIDTH_H=WIDTH_H,
                    WIDTH=WIDTH,
                    MASK_WIDTH=MASK_WIDTH,
                    PRECISION=PRECISION,
                    TMA=TMA,
                )
                _finish(ready + step)
                ticket = _next(ticket, state, DETERMINISTIC)
            base += number
            while ticket < base + number:
                rows = (step * per_super + ticket - base) * BLOCK + tl.arange(0, BLOCK)
                set_rows(out, down_bias, rows, rows < num_tokens, D_OUT, DOWN_BIAS)
                _finish(ready + step)
                ticket = _next(ticket, state, DETERMINISTIC)
            base += number
        at = step - AHEAD  # superblock
        if GROUP:
            if at == 0:
                ticket, base = _order(
                    ticket, base, state, down_pairs, ordered_pairs, pairs, GROUP, PIECE, FENCE
                )
        if at >= first_super:
            number = tl.minimum(blocks - at * per_super, per_super)
            _await(ready + at, 2 * number)
            count = tl.load(counts + at * n + experts, experts < n, other=0, cache_modifier=".cg")
            number = tl.sum((count + TILE - 1) // TILE, 0) * CHUNKS
            while ticket < base + number:
                _run_tile(
                    piece=ticket - base,
                    count=count,
                    z=z,
                    up=up,
                    gate=gate,
                    down=down,
                    up_bias=up_bias,
                    gate_bias=gate_bias,
                    out=out,
                    tokens=tokens + tl.cast(at * n, tl.int64) * superblock,
                    superblock=superblock,
                    D_MODEL=D_MODEL,
                    D_OUT=D_OUT,
                    E=E,
                    ACTIVATION=ACTIVATION,
                    GATED=GATED,
                    UP_BIAS=UP_BIAS,
                    GATE_BIAS=GATE_BIAS,
                    DETERMINISTIC=DETERMINISTIC,
                    TILE=TILE,
                    CHUNK=CHUNK,
                    CHUNKS=CHUNKS,
                    BLOCK_K=BLOCK_K,
                    BLOCK_N=BLOCK_N,
                    WIDTH=WIDTH,
                    PRECISION=PRECISION,
                    TMA=TMA,
                    GROUP=GROUP,
                    WARPS=WARPS,
                )
                ticket = _next(ticket, state, DETERMINISTIC)
            base += number
