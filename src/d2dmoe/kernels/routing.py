"""From scores to lists of tokens per expert on the GPU: no sort, no atomics, no host sync.

Tokens are cut into superblocks of `SUPERBLOCK`, so that a superblock's inputs and outputs stay in
the L2 cache while its experts run. A segment is one expert's tokens in one superblock; a tile is up
to TILE of them, the work of one step of the expert kernel.

    router or count   mask, and per block of tokens how many chose each expert
    offsets           where each block's tokens start in their segments; the segments' sizes
    lists             the tokens of each segment, and the table of tiles
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2dmoe.kernels.experts import RouterWeights

BLOCK = 64  # tokens that one program of these kernels looks at


class Tables(NamedTuple):
    """Which tokens each expert runs. S superblocks, n experts, at most B blocks a superblock."""

    tokens: Tensor  # int32 [S, n, superblock]: a segment's tokens, ascending; the rest is undefined
    counts: Tensor  # int32 [S, n]: tokens of each segment
    tile_starts: Tensor  # int32 [S * n + 1]: tiles before each segment; the last: tiles in all
    tile_segments: Tensor  # int32 [most tiles]: segment of each tile
    superblock: int  # tokens
    tile: int  # tokens


def build_tables(mask: Tensor, superblock: int, tile: int, counts: Tensor | None = None) -> Tables:
    """Index lists of a mask.

    Args:
        mask: boolean [tokens, n], contiguous.
        superblock: tokens; a multiple of BLOCK.
        tile: tokens; a multiple of BLOCK.
        counts: int32 [blocks, n], tokens of each block that chose each expert; None: counted here.
    """
    num_tokens, n = mask.shape
    blocks = triton.cdiv(num_tokens, BLOCK)
    supers = triton.cdiv(num_tokens, superblock)
    width = min(triton.next_power_of_2(n), 64)  # experts that a program looks at
    chunks = triton.cdiv(n, width)
    mask = mask.view(torch.uint8)
    new = mask.new_empty
    if counts is None:
        counts = new((blocks, n), dtype=torch.int32)
        _count[(blocks, chunks)](mask, counts, num_tokens, n, BLOCK=BLOCK, WIDTH=width)
    per_super = superblock // BLOCK
    offsets = new((blocks, n), dtype=torch.int32)
    segment_counts = new((supers, n), dtype=torch.int32)
    _offsets[(supers, chunks)](
        counts, offsets, segment_counts, blocks, n, PER_SUPER=per_super, WIDTH=width
    )
    segments = supers * n
    starts = new(segments + 1, dtype=torch.int32)
    _tile_starts[(1,)](segment_counts, starts, segments, TILE=tile, WIDTH=1024)
    tokens = new((supers, n, superblock), dtype=torch.int32)
    tile_segments = new(supers * n * (superblock // tile), dtype=torch.int32)
    _lists[(blocks, chunks)](
        mask,
        offsets,
        segment_counts,
        starts,
        tokens,
        tile_segments,
        num_tokens,
        n,
        SUPERBLOCK=superblock,
        TILE=tile,
        BLOCK=BLOCK,
        WIDTH=width,
    )
    return Tables(tokens, segment_counts, starts, tile_segments, superblock, tile)


@triton.jit
def _count(mask, counts, num_tokens, n, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    block, experts = tl.program_id(0), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < num_tokens)[:, None] & (experts < n)[None, :]
    chosen = tl.load(mask + rows[:, None].to(tl.int64) * n + experts[None, :], inside, other=0)
    tl.store(counts + block * n + experts, tl.sum(chosen.to(tl.int32), 0), experts < n)


@triton.jit
def _offsets(
    counts, offsets, segment_counts, blocks, n, PER_SUPER: tl.constexpr, WIDTH: tl.constexpr
):
    """Running sums of the counts down a superblock's blocks."""
    superblock, experts = tl.program_id(0), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    rows = superblock * PER_SUPER + tl.arange(0, PER_SUPER)
    places = rows[:, None] * n + experts[None, :]
    inside = (rows < blocks)[:, None] & (experts < n)[None, :]
    count = tl.load(counts + places, inside, other=0)
    tl.store(offsets + places, tl.cumsum(count, 0) - count, inside)
    tl.store(segment_counts + superblock * n + experts, tl.sum(count, 0), experts < n)


@triton.jit
def _tile_starts(segment_counts, starts, segments, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Running sum of the segments' tiles; one program."""
    before = 0
    for first in range(0, segments, WIDTH):
        segment = first + tl.arange(0, WIDTH)
        count = tl.load(segment_counts + segment, segment < segments, other=0)
        tiles = (count + TILE - 1) // TILE
        tl.store(starts + segment, before + tl.cumsum(tiles, 0) - tiles, segment < segments)
        before += tl.sum(tiles, 0)
    tl.store(starts + segments, before)


@triton.jit
def _lists(
    mask,
    offsets,
    segment_counts,
    starts,
    tokens,
    tile_segments,
    num_tokens,
    n,
    SUPERBLOCK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    block, experts = tl.program_id(0), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    superblock = block // (SUPERBLOCK // BLOCK)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    known = experts < n
    inside = (rows < num_tokens)[:, None] & known[None, :]
    chosen = tl.load(mask + rows[:, None].to(tl.int64) * n + experts[None, :], inside, other=0)
    chosen = chosen.to(tl.int32)
    segment = superblock * n + experts
    offset = tl.load(offsets + block * n + experts, known, other=0)
    place = offset[None, :] + tl.cumsum(chosen, 0) - chosen
    segment_tokens = tokens + segment.to(tl.int64) * SUPERBLOCK
    tl.store(segment_tokens[None, :] + place, rows[:, None], chosen > 0)
    # The i-th block of a superblock writes the i-th tile of each of its segments: it has no more.
    tile = block % (SUPERBLOCK // BLOCK)
    count = tl.load(segment_counts + segment, known, other=0)
    start = tl.load(starts + segment, known, other=0)
    tl.store(tile_segments + start + tile, segment, known & (tile * TILE < count))


def route(z: Tensor, router: RouterWeights, tau: float, out: Tensor, init: Tensor | None) -> tuple:
    """Scores, dynamic-k mask and counts in one pass over the tokens; fills `out` on the way.

    Args:
        z: tokens, [tokens, d_model].
        router: its weights, of z's dtype; at most 256 experts.
        tau: threshold of dynamic-k.
        out: [tokens, d_out]; every row is set to `init` [d_out], or to zero.

    Returns:
        The mask, boolean [tokens, n], and counts, int32 [blocks, n], for `build_tables`.
    """
    num_tokens, d_model = z.shape
    n, h = router.down.shape
    blocks = triton.cdiv(num_tokens, BLOCK)
    mask = torch.empty(num_tokens, n, dtype=torch.bool, device=z.device)
    counts = torch.empty(blocks, n, dtype=torch.int32, device=z.device)
    _route[(blocks,)](
        z,
        *router[:4],
        mask.view(torch.uint8),
        counts,
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
        BLOCK=BLOCK,
        BLOCK_K=64,
        WIDTH_H=max(16, triton.next_power_of_2(h)),
        WIDTH=max(16, triton.next_power_of_2(n)),
        BLOCK_OUT=128,
        num_warps=4,
        num_stages=3,
    )
    return mask, counts


def precision(z: Tensor) -> str:
    """`input_precision` of products: TF32 only where torch may use it."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def _route(
    z,
    up,
    up_bias,
    down,
    down_bias,
    mask,
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
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDTH_H: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    block = tl.program_id(0)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    real = rows < num_tokens
    rows64 = rows.to(tl.int64)
    ks, hs, experts = tl.arange(0, BLOCK_K), tl.arange(0, WIDTH_H), tl.arange(0, WIDTH)
    hidden = tl.zeros((BLOCK, WIDTH_H), dtype=tl.float32)
    for k in range(0, d_model, BLOCK_K):
        inside = ks + k < d_model
        x = tl.load(
            z + rows64[:, None] * d_model + k + ks[None, :], real[:, None] & inside[None, :], 0.0
        )
        w = tl.load(
            up + hs[None, :] * d_model + k + ks[:, None], (hs < h)[None, :] & inside[:, None], 0.0
        )
        hidden = tl.dot(x, w, hidden, input_precision=PRECISION)
    hidden += tl.load(up_bias + hs, hs < h, 0.0).to(tl.float32)[None, :]
    hidden = tl.maximum(hidden, 0.0).to(z.dtype.element_ty)
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
    chosen = (scores >= tau * largest) & ((largest > 0) | (tau == 0))
    inside = real[:, None] & known[None, :]
    chosen = chosen & inside
    tl.store(mask + rows64[:, None] * n + experts[None, :], chosen.to(tl.uint8), inside)
    tl.store(counts + block * n + experts, tl.sum(chosen.to(tl.int32), 0), known)
    columns = tl.arange(0, BLOCK_OUT)
    for first in range(0, d_out, BLOCK_OUT):
        column = first + columns
        inside_out = column < d_out
        value = tl.zeros((BLOCK_OUT,), dtype=out.dtype.element_ty)
        if HAS_INIT:
            value = tl.load(init + column, inside_out, 0.0).to(out.dtype.element_ty)
        tl.store(
            out + rows64[:, None] * d_out + column[None, :],
            tl.broadcast_to(value[None, :], (BLOCK, BLOCK_OUT)),
            real[:, None] & inside_out[None, :],
        )
