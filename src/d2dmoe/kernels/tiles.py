"""The experts of one tile in a kernel: gather, W1, activation in registers, W2, add to the output.

A tile is up to TILE tokens that chose the same expert. Experts of more than CHUNK neurons are taken
in chunks, each a piece of work of its own.
"""

import triton
import triton.language as tl


@triton.jit
def check_precision(PRECISION: tl.constexpr):
    """Refuse to compile products of a precision that `arguments.precision` does not give."""
    tl.static_assert(
        PRECISION == "ieee" or PRECISION == "tf32" or PRECISION == "tf32x3",
        "PRECISION must be ieee, tf32 or tf32x3",
    )


@triton.jit
def weight_block(
    w,
    expert,
    row,
    column,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TMA: tl.constexpr,
):
    """[ROWS, COLUMNS] of the matrix [E, WIDTH] of an expert, from a row and a column on; zeros
    beyond the matrix."""
    if TMA:
        block = tl.reshape(w.load([expert, row, column]), (ROWS, COLUMNS))
    else:
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        places = (
            w + tl.cast(expert, tl.int64) * E * WIDTH + rows[:, None] * WIDTH + columns[None, :]
        )
        if E % ROWS == 0 and WIDTH % COLUMNS == 0:
            block = tl.load(places)
        else:
            inside = (rows < E)[:, None] & (columns < WIDTH)[None, :]
            block = tl.load(places, inside, other=0)
    return block


@triton.jit
def neuron_values(values, expert, neurons, E: tl.constexpr):
    """What neurons of an expert have of `values` [n, E], fp32 [1, neurons]; 1 beyond E."""
    return tl.load(values + expert * E + neurons, neurons < E, other=1.0).to(tl.float32)[None, :]


@triton.jit
def hidden_neurons(
    rows,
    up,
    gate,
    up_bias,
    gate_bias,
    up_scale,
    gate_scale,
    expert,
    first,
    D_MODEL: tl.constexpr,
    E: tl.constexpr,
    NEURONS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):
    """What W2 multiplies, of the tokens at the pointers `rows` [T, 1], for the NEURONS neurons of
    an expert from the first on: [T, NEURONS], of the tokens' dtype. ACTIVATION is a function of
    `activations`; weights are int8 if SCALED."""
    # Biases and scales come first, so that their loads overlap with those of the products.
    neurons = first + tl.arange(0, NEURONS)
    hidden = tl.zeros((rows.shape[0], NEURONS), dtype=tl.float32)
    gated = tl.zeros((rows.shape[0], NEURONS), dtype=tl.float32)
    if UP_BIAS:
        hidden += neuron_values(up_bias, expert, neurons, E)
    if GATE_BIAS:
        gated += neuron_values(gate_bias, expert, neurons, E)
    if SCALED:  # all of a sum is in steps of the weights, and becomes what it is at the end
        step = neuron_values(up_scale, expert, neurons, E)
        hidden /= step
        if GATED:
            gate_step = neuron_values(gate_scale, expert, neurons, E)
            gated /= gate_step
    ks = tl.arange(0, BLOCK_K)
    for k in range(0, D_MODEL, BLOCK_K):
        if D_MODEL % BLOCK_K == 0:
            x = tl.load(rows + k + ks[None, :])
        else:
            x = tl.load(rows + k + ks[None, :], (ks + k < D_MODEL)[None, :], other=0.0)
        w = weight_block(up, expert, first, k, E, D_MODEL, NEURONS, BLOCK_K, TMA)
        hidden = tl.dot(x, w.to(x.dtype).T, hidden, input_precision=PRECISION)
        if GATED:
            g = weight_block(gate, expert, first, k, E, D_MODEL, NEURONS, BLOCK_K, TMA)
            gated = tl.dot(x, g.to(x.dtype).T, gated, input_precision=PRECISION)
    if SCALED:
        hidden *= step
        if GATED:
            gated *= gate_step
    if GATED:
        hidden *= ACTIVATION(gated)
    else:
        hidden = ACTIVATION(hidden)
    return hidden.to(rows.dtype.element_ty)


@triton.jit
def order_columns(pairs, ordered, first, size, GROUP: tl.constexpr, PIECE: tl.constexpr):
    """Put PIECE pairs of W2's numbers, from the first on, in the order of `by_vectors`: where a
    product's thread j has its pair i of a group, goes pair i of the group's vector j."""
    VECTOR: tl.constexpr = GROUP // 8  # pairs
    place = first + tl.arange(0, PIECE)
    within = place % (4 * VECTOR)
    pair = place - within + within % 4 * VECTOR + within // 4
    tl.store(ordered + place, tl.load(pairs + pair, place < size), place < size)


@triton.jit
def fence_for_tma():
    """Let the tensor memory accelerator read what was written by other programs of this kernel, and
    acquired."""
    fence: tl.constexpr = "fence.proxy.async.global; mov.u32 $0, 0;"
    tl.inline_asm_elementwise(fence, "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def by_vectors(y, GROUP: tl.constexpr, WARPS: tl.constexpr):
    """A product [T, N], of which a thread of the tensor cores has pairs of neighbouring columns, as
    [N // GROUP · T, GROUP] in such an order of columns and rows, within warps, that it has whole
    vectors: no number moves. Rows are in the order of `rows_of_vectors`."""
    T: tl.constexpr = y.shape[0]
    N: tl.constexpr = y.shape[1]
    parts = tl.reshape(y, (T // (16 * WARPS), WARPS, 2, 8, N // GROUP, GROUP // 8, 4, 2))
    return tl.reshape(tl.permute(parts, (4, 0, 2, 1, 3, 6, 5, 7)), (N // GROUP * T, GROUP))


@triton.jit
def rows_of_vectors(x, GROUPS: tl.constexpr, WARPS: tl.constexpr):
    """Of each row of `by_vectors` the value x [T] has for it: [GROUPS · T]."""
    T: tl.constexpr = x.shape[0]
    moved = tl.permute(tl.reshape(x, (T // (16 * WARPS), WARPS, 2, 8)), (0, 2, 1, 3))
    return tl.reshape(tl.broadcast_to(tl.reshape(moved, (1, T)), (GROUPS, T)), (GROUPS * T,))


@triton.jit
def add_outputs(
    hidden,
    down,
    out,
    token,
    expert,
    first,
    D_OUT: tl.constexpr,
    E: tl.constexpr,
    NEURONS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    ATOMIC: tl.constexpr,
    GROUP: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Add what the hidden neurons [T, NEURONS] give to the rows `token` [T] of out, where not
    negative. With a GROUP, W2's columns are in the order of `order_columns`."""
    if GROUP:
        rows = rows_of_vectors(token, BLOCK_N // GROUP, WARPS)
        group = tl.arange(0, BLOCK_N // GROUP * hidden.shape[0]) // hidden.shape[0]
        columns = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    else:
        rows = token
        columns = tl.arange(0, BLOCK_N)[None, :]
    starts = out + rows[:, None] * D_OUT
    for column in range(0, D_OUT, BLOCK_N):
        w = weight_block(down, expert, first, column, E, D_OUT, NEURONS, BLOCK_N, TMA)
        y = tl.dot(hidden, w, input_precision=PRECISION).to(out.dtype.element_ty)
        if GROUP:
            y = by_vectors(y, GROUP, WARPS)
        places = starts + column + columns
        wanted = tl.broadcast_to(rows[:, None] >= 0, places.shape)
        if D_OUT % BLOCK_N != 0:
            wanted &= column + columns < D_OUT
        if ATOMIC:
            tl.atomic_add(places, y, wanted, sem="relaxed")
        else:
            tl.store(places, tl.load(places, wanted, other=0.0) + y, wanted)
