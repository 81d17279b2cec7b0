"""From scores to lists of tokens per expert on the GPU: no sort, no host synchronisation.

Tokens are cut into superblocks, so that a superblock's inputs and outputs stay in the L2 cache
while its experts run. A segment is one expert's tokens in one superblock; a tile is up to TILE of
them, the work of one step of the expert kernel.

    router or mask    each block of tokens reserves a place in the segments of its experts by one
                      atomic addition each, and lists its tokens there
    tiles             the table of tiles, of the segments' sizes

The order of a segment's tokens differs from run to run; no token's output depends on it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2dmoe.kernels.experts import RouterWeights

BLOCK = 64  # tokens that one program looks at
ROUTE = {"BLOCK_K": 64, "num_warps": 4, "num_stages": 4}


class Segments(NamedTuple):
    """Which tokens each of n experts runs, by the S superblocks."""

    tokens: Tensor  # int32 [S, n, superblock]; those beyond a segment's count are undefined
    counts: Tensor  # int32 [S, n]: tokens of each segment

    @property
    def superblock(self) -> int:
        return self.tokens.shape[2]


class Tiles(NamedTuple):
    """The work of the expert kernel, superblock by superblock, there expert by expert."""

    starts: Tensor  # int32 [most tiles]: where in the segments' tokens, as one list, a tile starts
    sizes: Tensor  # int32 [most tiles]: its tokens
    firsts: Tensor  # int32 [S + 1]: tiles before each superblock; the last: tiles in all


def _empty_segments(z: Tensor, n: int, superblock: int) -> Segments:
    supers = triton.cdiv(len(z), superblock)
    tokens = torch.empty(supers, n, superblock, dtype=torch.int32, device=z.device)
    return Segments(tokens, torch.zeros(supers, n, dtype=torch.int32, device=z.device))


def segments_of(mask: Tensor, superblock: int) -> Segments:
    """The tokens of each expert by a mask.

    Args:
        mask: boolean [tokens, n], contiguous.
        superblock: tokens; a power of two, and a multiple of BLOCK.
    """
    num_tokens, n = mask.shape
    segments = _empty_segments(mask, n, superblock)
    width = min(triton.next_power_of_2(n), 64)  # experts that a program looks at
    _list[(triton.cdiv(num_tokens, BLOCK), triton.cdiv(n, width))](
        mask.view(torch.uint8),
        *segments,
        num_tokens,
        n,
        SUPERBLOCK=superblock,
        BLOCK=BLOCK,
        WIDTH=width,
    )
    return segments


@triton.jit
def _list(
    mask,
    tokens,
    counts,
    num_tokens,
    n,
    SUPERBLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    experts = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < num_tokens)[:, None] & (experts < n)[None, :]
    chosen = tl.load(mask + rows[:, None].to(tl.int64) * n + experts[None, :], inside, other=0)
    _append(chosen.to(tl.int32), rows, experts, tokens, counts, n, SUPERBLOCK, BLOCK)


@triton.jit
def _append(
    chosen, rows, experts, tokens, counts, n, SUPERBLOCK: tl.constexpr, BLOCK: tl.constexpr
):
    """List the rows under the experts that they chose: chosen, 0 or 1, [BLOCK, experts]."""
    superblock = tl.program_id(0) // (SUPERBLOCK // BLOCK)
    segment = superblock * n + experts
    count = tl.sum(chosen, 0)
    first = tl.atomic_add(counts + segment, count, (experts < n) & (count > 0), sem="relaxed")
    place = first[None, :] + tl.cumsum(chosen, 0) - 1
    listed = tokens + segment.to(tl.int64)[None, :] * SUPERBLOCK + place
    tl.store(listed, tl.broadcast_to(rows[:, None], chosen.shape), chosen > 0)


def tiles_of(segments: Segments, tile: int) -> Tiles:
    """The table of tiles of up to `tile` tokens, a power of two that divides the superblock."""
    supers, n = segments.counts.shape
    new = segments.counts.new_empty
    most = supers * n * (segments.superblock // tile)
    tiles = Tiles(new(most), new(most), new(supers + 1))
    _tabulate[(1,)](
        segments.counts,
        *tiles,
        supers * n,
        n,
        SUPERBLOCK=segments.superblock,
        TILE=tile,
        WIDTH=256,
        DEPTH=8,
    )
    return tiles


@triton.jit
def _tabulate(
    counts,
    starts,
    sizes,
    firsts,
    segments,
    n,
    SUPERBLOCK: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One program: the segments are few, and each tile's place depends on all before it."""
    depth = tl.arange(0, DEPTH)[:, None]
    before = 0
    for first in range(0, segments, WIDTH):
        segment = first + tl.arange(0, WIDTH)
        count = tl.load(counts + segment, segment < segments, other=0)
        tiles = (count + TILE - 1) // TILE
        place = before + tl.cumsum(tiles, 0) - tiles
        tl.store(firsts + segment // n, place, (segment < segments) & (segment % n == 0))
        for some in range(0, tl.max(tiles, 0), DEPTH):
            tile = some + depth
            exists = tile < tiles[None, :]
            start = segment[None, :] * SUPERBLOCK + tile * TILE
            tl.store(starts + place[None, :] + tile, start, exists)
            size = tl.minimum(count[None, :] - tile * TILE, TILE)
            tl.store(sizes + place[None, :] + tile, size, exists)
        before += tl.sum(tiles, 0)
    tl.store(firsts + segments // n, before)


def route(
    z: Tensor,
    router: RouterWeights,
    tau: float,
    out: Tensor,
    init: Tensor | None,
    superblock: int,
) -> Segments:
    """Scores, dynamic-k and lists in one pass over the tokens; fills `out` on the way.

    Args:
        z: tokens, [tokens, d_model].
        router: its weights, of z's dtype; at most 256 experts.
        tau: threshold of dynamic-k.
        out: [tokens, d_out]; every row is set to `init` [d_out], or to zero.
        superblock: tokens; a power of two, and a multiple of BLOCK.
    """
    num_tokens, d_model = z.shape
    n, h = router.down.shape
    segments = _empty_segments(z, n, superblock)
    _route[(triton.cdiv(num_tokens, BLOCK),)](
        z,
        *router[:4],
        *segments,
        out,
        out if init is None else init,
        num_tokens,
        tau,
        d_model,
        h,
        n,
        out.shape[1],
        HAS_INIT=init is not None,
        REGRESSION=router.kind == "regression",
        PRECISION=precision(z),
        SUPERBLOCK=superblock,
        BLOCK=BLOCK,
        WIDTH_H=max(16, triton.next_power_of_2(h)),
        WIDTH=max(16, triton.next_power_of_2(n)),
        BLOCK_OUT=128,
        **ROUTE,
    )
    return segments


def precision(z: Tensor) -> str:
    """`input_precision` of products. Where torch may not use TF32, fp32 numbers are each split into
    three TF32 numbers, whose products lose hardly more than fp32 itself."""
    if z.dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


@triton.jit
def router_hidden(
    z,
    rows,
    real,
    up,
    up_bias,
    hs,
    d_model,
    h,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The router's hidden neurons hs [H] of the rows [T] that are real: [T, H], of z's dtype."""
    ks = tl.arange(0, BLOCK_K)
    rows = rows.to(tl.int64)
    hidden = tl.zeros((rows.shape[0], hs.shape[0]), dtype=tl.float32)
    for k in range(0, d_model, BLOCK_K):
        inside = ks + k < d_model
        x = tl.load(
            z + rows[:, None] * d_model + k + ks[None, :], real[:, None] & inside[None, :], 0.0
        )
        w = tl.load(
            up + hs[None, :] * d_model + k + ks[:, None], (hs < h)[None, :] & inside[:, None], 0.0
        )
        hidden = tl.dot(x, w, hidden, input_precision=PRECISION)
    hidden += tl.load(up_bias + hs, hs < h, 0.0).to(tl.float32)[None, :]
    return tl.maximum(hidden, 0.0).to(z.dtype.element_ty)


@triton.jit
def router_choice(
    hidden,
    hs,
    down,
    down_bias,
    experts,
    tau,
    h,
    n,
    REGRESSION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dynamic-k of the router's hidden neurons [T, H]: boolean [T, experts], false beyond n."""
    known = experts < n
    w = tl.load(down + experts[None, :] * h + hs[:, None], known[None, :] & (hs < h)[:, None], 0.0)
    scores = tl.dot(hidden, w, input_precision=PRECISION)
    scores += tl.load(down_bias + experts, known, 0.0).to(tl.float32)[None, :]
    if REGRESSION:
        scores = tl.abs(scores)
    else:
        scores = tl.sigmoid(scores)
    scores = tl.where(known[None, :], scores, -1.0)
    largest = tl.max(scores, 1)[:, None]
    return (scores >= tau * largest) & ((largest > 0) | (tau == 0)) & known[None, :]


@triton.jit
def _route(
    z,
    up,
    up_bias,
    down,
    down_bias,
    tokens,
    counts,
    out,
    init,
    num_tokens,
    tau,
    d_model,
    h,
    n,
    d_out,
    HAS_INIT: tl.constexpr,
    REGRESSION: tl.constexpr,
    PRECISION: tl.constexpr,
    SUPERBLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = rows < num_tokens
    columns = tl.arange(0, BLOCK_OUT)
    for first in range(0, d_out, BLOCK_OUT):
        column = first + columns
        inside = column < d_out
        value = tl.zeros((BLOCK_OUT,), dtype=out.dtype.element_ty)
        if HAS_INIT:
            value = tl.load(init + column, inside, 0.0).to(out.dtype.element_ty)
        tl.store(
            out + rows[:, None].to(tl.int64) * d_out + column[None, :],
            tl.broadcast_to(value[None, :], (BLOCK, BLOCK_OUT)),
            real[:, None] & inside[None, :],
        )
    hs, experts = tl.arange(0, WIDTH_H), tl.arange(0, WIDTH)
    hidden = router_hidden(z, rows, real, up, up_bias, hs, d_model, h, BLOCK_K, PRECISION)
    chosen = router_choice(hidden, hs, down, down_bias, experts, tau, h, n, REGRESSION, PRECISION)
    chosen = (chosen & real[:, None]).to(tl.int32)
    _append(chosen, rows, experts, tokens, counts, n, SUPERBLOCK, BLOCK)
