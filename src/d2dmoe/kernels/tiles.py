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
from triton.tools.tensor_descriptor import TensorDescriptor

from d2dmoe.kernels.experts import Experts
from d2dmoe.kernels.launch import Launch
from d2dmoe.kernels.routing import Segments, precision, tiles_of

CHUNK = 128  # neurons, of those that one tile's accumulators can hold


def add_experts(
    z: Tensor, experts: Experts, segments: Segments, out: Tensor, launch: Launch
) -> None:
    """out[t] += sum of the experts whose segments list token t.

    Args:
        z: tokens, [tokens, d_model], contiguous.
        out: [tokens, d_out], contiguous, filled with what lies outside the experts. Sums are kept
            in its dtype.
    """
    n, e = experts.num_experts, experts.expert_size
    chunk = min(CHUNK, max(16, triton.next_power_of_2(e)))
    chunks = triton.cdiv(e, chunk)
    supers = segments.counts.shape[0]
    tiles = tiles_of(segments, launch.tile)
    programs = supers
    if not launch.deterministic:
        programs = min(launch.programs(z.device), tiles.starts.numel() * chunks)
    tma = launch.tma and z.dtype.itemsize * experts.d_model % 16 == 0
    tma = tma and z.dtype.itemsize * experts.d_out % 16 == 0

    def weights(w: Tensor, block_columns: int):
        return TensorDescriptor.from_tensor(w, [1, chunk, block_columns]) if tma else w

    gate = experts.up if experts.gate is None else experts.gate
    _add_experts[(programs,)](
        z,
        weights(experts.up, launch.block_k),
        weights(gate, launch.block_k),
        weights(experts.down, launch.block_n),
        _or(experts.up_bias, out),
        _or(experts.gate_bias, out),
        out,
        segments.tokens,
        *tiles,
        n,
        supers,
        experts.d_model,
        experts.d_out,
        E=e,
        ACTIVATION=experts.activation,
        GATED=experts.gate is not None,
        UP_BIAS=experts.up_bias is not None,
        GATE_BIAS=experts.gate_bias is not None,
        DETERMINISTIC=launch.deterministic,
        SUPERBLOCK=segments.superblock,
        TILE=launch.tile,
        CHUNK=chunk,
        CHUNKS=chunks,
        BLOCK_K=launch.block_k,
        BLOCK_N=launch.block_n,
        PRECISION=precision(z),
        TMA=tma,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        maxnreg=launch.maxnreg,
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
def weight_block(
    w, expert, row, column, E, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr
):
    """[ROWS, COLUMNS] of the matrix [E, width] of an expert, from a row and a column on; zeros
    beyond the matrix."""
    if TMA:
        block = tl.reshape(w.load([expert, row, column]), (ROWS, COLUMNS))
    else:
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        inside = (rows < E)[:, None] & (columns < width)[None, :]
        first = w + expert.to(tl.int64) * E * width
        block = tl.load(first + rows[:, None] * width + columns[None, :], inside, other=0.0)
    return block


@triton.jit
def hidden_neurons(
    rows,
    up,
    gate,
    up_bias,
    gate_bias,
    expert,
    first,
    d_model,
    E: tl.constexpr,
    NEURONS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):
    """What W2 multiplies, of the tokens at the pointers `rows` [T, 1], for the NEURONS neurons of
    an expert from the first on: [T, NEURONS], of the tokens' dtype."""
    # The biases come first, so that their loads overlap with those of the products.
    neurons = first + tl.arange(0, NEURONS)
    hidden = tl.zeros((rows.shape[0], NEURONS), dtype=tl.float32)
    gated = tl.zeros((rows.shape[0], NEURONS), dtype=tl.float32)
    if UP_BIAS:
        bias = tl.load(up_bias + expert * E + neurons, neurons < E, other=0.0)
        hidden += bias.to(tl.float32)[None, :]
    if GATE_BIAS:
        bias = tl.load(gate_bias + expert * E + neurons, neurons < E, other=0.0)
        gated += bias.to(tl.float32)[None, :]
    ks = tl.arange(0, BLOCK_K)
    for k in range(0, d_model, BLOCK_K):
        x = tl.load(rows + k + ks[None, :], (ks + k < d_model)[None, :], other=0.0)
        w = weight_block(up, expert, first, k, E, d_model, NEURONS, BLOCK_K, TMA)
        hidden = tl.dot(x, w.T, hidden, input_precision=PRECISION)
        if GATED:
            g = weight_block(gate, expert, first, k, E, d_model, NEURONS, BLOCK_K, TMA)
            gated = tl.dot(x, g.T, gated, input_precision=PRECISION)
    if GATED:
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
    starts,
    sizes,
    firsts,
    n,
    supers,
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
    TMA: tl.constexpr,
):
    program = tl.program_id(0)
    if DETERMINISTIC:
        first = tl.load(firsts + program) * CHUNKS
        last = tl.load(firsts + program + 1) * CHUNKS
        step = 1
    else:
        first = program
        last = tl.load(firsts + supers) * CHUNKS
        step = tl.num_programs(0)
    row, columns = tl.arange(0, TILE), tl.arange(0, BLOCK_N)
    start = tl.load(starts + first // CHUNKS, first < last, other=0)
    real = row < tl.load(sizes + first // CHUNKS, first < last, other=0)
    token = tl.load(tokens + start + row, real, other=0).to(tl.int64)
    for work in range(first, last, step):
        # What the next piece needs is on its way while this one is computed.
        after = work + step
        next_start = tl.load(starts + after // CHUNKS, after < last, other=0)
        next_size = tl.load(sizes + after // CHUNKS, after < last, other=0)
        expert, neuron = start // SUPERBLOCK % n, (work % CHUNKS) * CHUNK
        hidden = hidden_neurons(
            z + token[:, None] * d_model,
            up,
            gate,
            up_bias,
            gate_bias,
            expert,
            neuron,
            d_model,
            E,
            CHUNK,
            ACTIVATION,
            GATED,
            UP_BIAS,
            GATE_BIAS,
            BLOCK_K,
            PRECISION,
            TMA,
        )
        next_token = tl.load(tokens + next_start + row, row < next_size, other=0)
        for column in range(0, d_out, BLOCK_N):
            w = weight_block(down, expert, neuron, column, E, d_out, CHUNK, BLOCK_N, TMA)
            y = tl.dot(hidden, w, input_precision=PRECISION).to(out.dtype.element_ty)
            inside = column + columns < d_out
            places = out + token[:, None] * d_out + column + columns[None, :]
            wanted = real[:, None] & inside[None, :]
            if DETERMINISTIC:
                tl.store(places, tl.load(places, wanted, other=0.0) + y, wanted)
            else:
                tl.atomic_add(places, y, wanted, sem="relaxed")
        if DETERMINISTIC:
            tl.debug_barrier()  # the next tile may add to the same rows by other threads
        start, real, token = next_start, row < next_size, next_token.to(tl.int64)
