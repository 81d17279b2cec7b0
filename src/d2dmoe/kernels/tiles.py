"""The fused expert kernel for many tokens: gather, W1, activation, W2, add into the output.

A step works on one tile, up to TILE tokens that chose the same expert: their rows are gathered, the
expert's hidden neurons stay in registers, and its output is added to the tokens' rows. Programs are
persistent and take tiles in the order of the superblocks, so that inputs, outputs and weights are
in the L2 cache while they are used. Experts of more than `CHUNK` neurons are taken in chunks.

Tokens belong to several experts, so several programs add into one row: atomically, in an order that
differs from run to run. The deterministic variant gives each superblock, which then must be small,
to one program, which takes its tiles in order and adds without atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from d2dmoe.kernels.experts import Experts
from d2dmoe.kernels.launch import Launch
from d2dmoe.kernels.routing import Tables, precision

CHUNK = 128  # neurons, of those that one tile's accumulators can hold


def add_experts(z: Tensor, experts: Experts, tables: Tables, out: Tensor, launch: Launch) -> None:
    """out[t] += sum of the experts that the tables give token t.

    Args:
        z: tokens, [tokens, d_model], contiguous.
        tables: of the mask; their tile is `launch.tile`.
        out: [tokens, d_out], contiguous, filled with what lies outside the experts. Sums are kept
            in its dtype.
    """
    n, e = experts.num_experts, experts.expert_size
    chunk = min(CHUNK, max(16, triton.next_power_of_2(e)))
    chunks = triton.cdiv(e, chunk)
    supers = tables.counts.shape[0]
    programs = (
        supers
        if launch.deterministic
        else min(launch.programs(z.device), tables.tile_segments.numel() * chunks)
    )
    gate = experts.up if experts.gate is None else experts.gate
    _add_experts[(programs,)](
        z,
        experts.up,
        gate,
        experts.down,
        _or(experts.up_bias, out),
        _or(experts.gate_bias, out),
        out,
        tables.tokens,
        tables.counts,
        tables.tile_starts,
        tables.tile_segments,
        n,
        supers * n,
        experts.d_model,
        experts.d_out,
        E=e,
        ACTIVATION=experts.activation,
        GATED=experts.gate is not None,
        UP_BIAS=experts.up_bias is not None,
        GATE_BIAS=experts.gate_bias is not None,
        DETERMINISTIC=launch.deterministic,
        SUPERBLOCK=tables.superblock,
        TILE=tables.tile,
        CHUNK=chunk,
        CHUNKS=chunks,
        BLOCK_K=launch.block_k,
        BLOCK_N=launch.block_n,
        PRECISION=precision(z),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def _or(bias: Tensor | None, other: Tensor) -> Tensor:
    return other if bias is None else bias


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """ReLU, GELU or GELU's tanh form, in fp32."""
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * tl.sigmoid(2.0 * inner)  # 0.5 x (1 + tanh(inner))


@triton.jit
def hidden_neurons(
    rows,
    up,
    gate,
    up_bias,
    gate_bias,
    neuron,
    exists,
    d_model,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What W2 multiplies, of the tokens at the pointers `rows` [T, 1], for the neurons with the
    numbers `neuron` [N] in all experts' order that `exists`: [T, N], of the tokens' dtype."""
    ks = tl.arange(0, BLOCK_K)
    hidden = tl.zeros((rows.shape[0], neuron.shape[0]), dtype=tl.float32)
    gated = tl.zeros((rows.shape[0], neuron.shape[0]), dtype=tl.float32)
    for k in range(0, d_model, BLOCK_K):
        inside = ks + k < d_model
        x = tl.load(rows + k + ks[None, :], inside[None, :], other=0.0)
        weights = neuron[None, :] * d_model + k + ks[:, None]
        present = exists[None, :] & inside[:, None]
        w = tl.load(up + weights, present, other=0.0)
        hidden = tl.dot(x, w, hidden, input_precision=PRECISION)
        if GATED:
            g = tl.load(gate + weights, present, other=0.0)
            gated = tl.dot(x, g, gated, input_precision=PRECISION)
    if UP_BIAS:
        hidden += tl.load(up_bias + neuron, exists, 0.0).to(tl.float32)[None, :]
    if GATED:
        if GATE_BIAS:
            gated += tl.load(gate_bias + neuron, exists, 0.0).to(tl.float32)[None, :]
        hidden *= activate(gated, ACTIVATION)
    else:
        hidden = activate(hidden, ACTIVATION)
    return hidden.to(rows.dtype.element_ty)


@triton.jit
def _add_experts(
    z,
    up,
    gate,
    down,
    up_bias,
    gate_bias,
    out,
    tokens,
    counts,
    tile_starts,
    tile_segments,
    n,
    segments,
    d_model,
    d_out,
    E: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    SUPERBLOCK: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0)
    if DETERMINISTIC:
        first = tl.load(tile_starts + program * n) * CHUNKS
        last = tl.load(tile_starts + (program + 1) * n) * CHUNKS
        step = 1
    else:
        first = program
        last = tl.load(tile_starts + segments) * CHUNKS
        step = tl.num_programs(0)
    columns = tl.arange(0, BLOCK_N)
    for work in range(first, last, step):
        tile = work // CHUNKS
        segment = tl.load(tile_segments + tile)
        place = (tile - tl.load(tile_starts + segment)) * TILE + tl.arange(0, TILE)
        real = place < tl.load(counts + segment)
        token = tl.load(tokens + segment.to(tl.int64) * SUPERBLOCK + place, real, other=0)
        token = token.to(tl.int64)
        neurons = (work % CHUNKS) * CHUNK + tl.arange(0, CHUNK)
        exists = neurons < E
        neuron = ((segment % n) * E + neurons).to(tl.int64)  # row of up, gate and down

        hidden = hidden_neurons(
            z + token[:, None] * d_model,
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
        for column in range(0, d_out, BLOCK_N):
            inside = column + columns < d_out
            w = tl.load(
                down + neuron[:, None] * d_out + column + columns[None, :],
                exists[:, None] & inside[None, :],
                other=0.0,
            )
            y = tl.dot(hidden, w, input_precision=PRECISION).to(out.dtype.element_ty)
            places = out + token[:, None] * d_out + column + columns[None, :]
            wanted = real[:, None] & inside[None, :]
            if DETERMINISTIC:
                tl.store(places, tl.load(places, wanted, other=0.0) + y, wanted)
            else:
                tl.atomic_add(places, y, wanted, sem="relaxed")
        if DETERMINISTIC:
            tl.debug_barrier()  # the next tile may add to the same rows by other threads
