"""An activation, min(max(x, 0), 6), in torch and in Triton."""

import torch
import triton
import triton.language as tl


def relu6(x: torch.Tensor) -> torch.Tensor:
    """Of a tensor of any shape."""
    return torch.clamp(x, 0.0, 6.0)


@triton.jit
def relu6_of_block(x):
    return tl.minimum(tl.maximum(x, 0.0), 6.0)
