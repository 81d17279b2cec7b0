"""Element-wise functions of fp32 blocks that the kernels take as arguments and call.

Those of the experts' neurons, by the records of `activations`, and those that make a router's
scores of its logits, by the records of `router_kinds`.
"""

import triton
import triton.language as tl


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, tl.PropagateNan.ALL)


@triton.jit
def relu_squared(x):
    positive = relu(x)
    return positive * positive


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(2.0 * inner)  # 0.5 x (1 + tanh(inner))


@triton.jit
def quick_gelu(x):
    return x * tl.sigmoid(1.702 * x)


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def square(x):
    return x * x


@triton.jit
def sigmoid(x):
    return tl.sigmoid(x)
