"""Routing a block of tokens in a kernel: scores, dynamic-k, and lists of tokens by expert.

Tokens are cut into superblocks, so that a superblock's inputs and outputs stay in the L2 cache
while its experts run. A segment is one expert's tokens in one superblock. A block of tokens
reserves a place in the segments of its experts by an atomic addition to each, and lists its tokens
there: no sort, no pass over all tokens, nothing read on the host. The order of a segment's tokens
differs from run to run; no token's output depends on it.
"""

import triton
import triton.language as tl


@triton.jit
def router_down_weights(down, down_bias, hs, experts, h, n):
    """A router's second layer, of its hidden neurons hs and of experts: [H, N], and fp32 [N]."""
    known = experts < n
    inside = known[None, :] & (hs < h)[:, None]
    w = tl.load(down + experts[None, :] * h + hs[:, None], inside, other=0.0)
    return w, tl.load(down_bias + experts, known, other=0.0).to(tl.float32)


@triton.jit
def router_choice(
    hidden,
    w,
    bias,
    experts,
    tau,
    n,
    SCORE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dynamic-k of the router's hidden neurons [T, H]: boolean [T, experts], false beyond n. SCORE
    is a function of `activations`. Experts whose scores are NaN run."""
    scores = SCORE(tl.dot(hidden, w, input_precision=PRECISION) + bias[None, :])
    known = (experts < n)[None, :]
    scores = tl.where(known, scores, -1.0)
    largest = tl.max(scores, 1)[:, None]
    broken = scores != scores
    left_out = (scores < tau * largest) | ((largest <= 0) & (tau != 0))
    return (broken | ~left_out) & known


@triton.jit
def append(chosen, rows, experts, tokens, counts, n, superblock):
    """List the rows [T] under the experts [N] that they chose, 0 or 1 [T, N]: `tokens` and `counts`
    are those of the superblock, [n, superblock] and [n]."""
    count = tl.sum(chosen, 0)
    first = tl.atomic_add(counts + experts, count, (experts < n) & (count > 0), sem="relaxed")
    place = first[None, :] + tl.cumsum(chosen, 0) - 1
    listed = tokens + experts[None, :] * superblock + place
    tl.store(listed, tl.broadcast_to(rows[:, None], chosen.shape), chosen > 0)


@triton.jit
def set_rows(out, init, rows, real, D_OUT: tl.constexpr, HAS_INIT: tl.constexpr):
    """Set the rows [T] of out [tokens, D_OUT] that are real to `init` [D_OUT], or to zero."""
    columns = tl.arange(0, 128)
    for first in range(0, D_OUT, 128):
        column = first + columns
        value = tl.zeros((128,), dtype=out.dtype.element_ty)
        if HAS_INIT:
            value = tl.load(init + column, column < D_OUT, other=0.0).to(out.dtype.element_ty)
        places = out + rows[:, None].to(tl.int64) * D_OUT + column[None, :]
        value = tl.broadcast_to(value[None, :], places.shape)
        tl.store(places, value, real[:, None] & (column < D_OUT)[None, :])
