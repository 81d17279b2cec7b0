"""The layer on a CUDA device, of the Triton kernels: what `ops` calls there.

persistent   many tokens: one kernel, of the parts in `routing` and `tiles`
decode       up to `decode.MAX_TOKENS` tokens
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from d2dmoe.errors import UserError
from d2dmoe.kernels import decode, persistent
from d2dmoe.kernels.launch import Launch, launch_for
from d2dmoe.selection import dynamic_k
from d2dmoe.weights import ExpertWeights, RouterWeights, scores

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

WIDEST_ROUTER = 128
"""Most experts, and most hidden neurons, of a router that the kernels hold in registers."""


def expert_ffn(
    z: Tensor, mask: Tensor, weights: ExpertWeights, launch: Launch | None = None
) -> Tensor:
    """See `ops.expert_ffn`."""
    return _run(z, weights, launch, mask=mask)


def dynamic_k_ffn(
    z: Tensor,
    router: RouterWeights,
    tau: float,
    weights: ExpertWeights,
    launch: Launch | None = None,
) -> Tensor:
    """See `ops.dynamic_k_ffn`."""
    if max(router.down.shape) > WIDEST_ROUTER:
        return _run(z, weights, launch, mask=dynamic_k(scores(z, router), tau))
    return _run(z, weights, launch, router=router, tau=tau)


def _run(z: Tensor, weights: ExpertWeights, launch: Launch | None, **selection) -> Tensor:
    """By the kernel for so many tokens; selected by a mask, or by a router and τ."""
    if z.dtype not in DTYPES:
        raise UserError(f"tokens are {z.dtype}; the GPU kernels take fp32, fp16 and bf16")
    if len(z) == 0:
        return z.new_empty(0, weights.d_out)
    # Triton launches on the current device, which need not be that of z.
    with torch.cuda.device(z.device) if z.is_cuda else nullcontext():
        if len(z) <= decode.MAX_TOKENS:
            return decode.run(z, weights, **selection)
        weights = weights.dequantized()  # so many tokens are bound by more than the weights' bytes
        return persistent.run(z, weights, launch or launch_for(z, weights), **selection)
