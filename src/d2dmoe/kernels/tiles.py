"""The experts of one tile in a kernel: gather, W1, activation in registers, W2, add to the output.

A tile is up to TILE tokens that chose the same expert. Experts of more than CHUNK neurons are taken
in chunks, each a piece of work of its own.
"""

import triton
import triton.language as tl


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
            block = tl.load(places, inside, other=0.0)
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
    D_MODEL: tl.constexpr,
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
    for k in range(0, D_MODEL, BLOCK_K):
        if D_MODEL % BLOCK_K == 0:
            x = tl.load(rows + k + ks[None, :])
        else:
            x = tl.load(rows + k + ks[None, :], (ks + k < D_MODEL)[None, :], other=0.0)
        w = weight_block(up, expert, first, k, E, D_MODEL, NEURONS, BLOCK_K, TMA)
        hidden = tl.dot(x, w.T, hidden, input_precision=PRECISION)
        if GATED:
            g = weight_block(gate, expert, first, k, E, D_MODEL, NEURONS, BLOCK_K, TMA)
            gated = tl.dot(x, g.T, gated, input_precision=PRECISION)
    if GATED:
        hidden *= activate(gated, ACTIVATION)
    else:
        hidden = activate(hidden, ACTIVATION)
    return hidden.to(rows.dtype.element_ty)


@triton.jit
def add_outputs(
    hidden,
    down,
    out,
    token,
    real,
    expert,
    first,
    D_OUT: tl.constexpr,
    E: tl.constexpr,
    NEURONS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
    ATOMIC: tl.constexpr,
):
    """Add what the hidden neurons [T, NEURONS] give to the rows of out that are real."""
    columns = tl.arange(0, BLOCK_N)
    for column in range(0, D_OUT, BLOCK_N):
        w = weight_block(down, expert, first, column, E, D_OUT, NEURONS, BLOCK_N, TMA)
        y = tl.dot(hidden, w, input_precision=PRECISION).to(out.dtype.element_ty)
        places = out + token[:, None] * D_OUT + column + columns[None, :]
        wanted = tl.broadcast_to(real[:, None], places.shape)
        if D_OUT % BLOCK_N != 0:
            wanted &= (column + columns < D_OUT)[None, :]
        if ATOMIC:
            tl.atomic_add(places, y, wanted, sem="relaxed")
        else:
            tl.store(places, tl.load(places, wanted, other=0.0) + y, wanted)
