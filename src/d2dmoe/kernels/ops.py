"""The functional entries: custom operators with implementations for the CPU, CUDA and tracing.

Inference only: no gradients flow through them (`weights.dense` has those). On the CPU they
compute expert by expert; on CUDA they run the Triton kernels, imported at the first call.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from d2dmoe.kernels.cpu import grouped
from d2dmoe.selection import dynamic_k
from d2dmoe.weights import (
    ExpertWeights,
    RouterWeights,
    autocast_dtype,
    check_mask,
    check_router,
    check_tokens,
    scores,
)


def expert_ffn(z: Tensor, mask: Tensor, weights: ExpertWeights) -> Tensor:
    """The sum of the selected experts of each token, plus down_bias.

    Deterministic where `torch.use_deterministic_algorithms` asks for it, then somewhat slower.

    Args:
        z: tokens, [tokens, d_model]; fp32, fp16 or bf16, on the CPU fp64 too.
        mask: which experts each token runs, boolean [tokens, n].
        weights: of z's dtype, or int8 with scales of it; autocast brings all to its own dtype.

    Returns:
        [tokens, d_out].

    Raises:
        UserError: shapes, dtypes or devices do not fit together.
        UnknownName: there is no such activation.
    """
    check_tokens(z, weights)
    check_mask(mask, z, weights)
    return _expert_ffn(*_flat((z, mask, *weights), autocast_dtype(z)))


def dynamic_k_ffn(z: Tensor, router: RouterWeights, tau: float, weights: ExpertWeights) -> Tensor:
    """`expert_ffn` of the experts whose scores are at least τ times the token's largest.

    On CUDA router, selection and index lists are fused. There the router's hidden neurons are
    rounded as in torch, but scores are compared in fp32: an expert on the threshold may fall on the
    other side.

    Args:
        z: tokens, [tokens, d_model].
        router: weights of z's dtype.
        tau: threshold in [0, 1].
        weights: of z's dtype, or int8 with scales of it; autocast brings all to its own dtype.

    Returns:
        [tokens, d_out].

    Raises:
        UserError: shapes, dtypes or devices do not fit together.
        UnknownName: there is no such activation or kind of router.
    """
    check_tokens(z, weights)
    check_router(router, z)
    dtype = autocast_dtype(z)
    return _dynamic_k_ffn(*_flat((z, *router), dtype), tau, *_flat(weights, dtype))


def _flat(values: Iterable[Any], dtype: torch.dtype | None = None) -> tuple:
    """Tensors contiguous and, where a dtype is given, those that autocast converts of it."""

    def flat(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        converted = dtype and value.is_floating_point() and value.dtype != torch.float64
        return (value.to(dtype) if converted else value).contiguous()

    return tuple(map(flat, values))


# The operators' arguments: the fields of `ExpertWeights` and of `RouterWeights`, in their order.
WEIGHTS = (
    "Tensor up, Tensor down, str activation, Tensor? up_bias, Tensor? gate, Tensor? gate_bias, "
    "Tensor? down_bias, Tensor? up_scale, Tensor? gate_scale, Tensor? down_scale"
)
ROUTER = (
    "Tensor router_up, Tensor router_up_bias, Tensor router_down, Tensor router_down_bias, str kind"
)


@torch.library.custom_op(
    "d2dmoe::expert_ffn",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor z, Tensor mask, {WEIGHTS}) -> Tensor",
)
def _expert_ffn(z, mask, *weights):
    return grouped(z, mask, ExpertWeights(*weights))


@_expert_ffn.register_kernel("cuda")
def _(z, mask, *weights):
    from d2dmoe.kernels.gpu import expert_ffn

    return expert_ffn(z, mask, ExpertWeights(*weights))


@_expert_ffn.register_fake
def _(z, mask, up, down, *_):
    return z.new_empty(z.shape[0], down.shape[2])


@torch.library.custom_op(
    "d2dmoe::dynamic_k_ffn",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor z, {ROUTER}, float tau, {WEIGHTS}) -> Tensor",
)
def _dynamic_k_ffn(z, ru, rub, rd, rdb, kind, tau, *weights):
    mask = dynamic_k(scores(z, RouterWeights(ru, rub, rd, rdb, kind)), tau)
    return grouped(z, mask, ExpertWeights(*weights))


@_dynamic_k_ffn.register_kernel("cuda")
def _(z, ru, rub, rd, rdb, kind, tau, *weights):
    from d2dmoe.kernels.gpu import dynamic_k_ffn

    return dynamic_k_ffn(z, RouterWeights(ru, rub, rd, rdb, kind), tau, ExpertWeights(*weights))


@_dynamic_k_ffn.register_fake
def _(z, ru, rub, rd, rdb, kind, tau, up, down, *_):
    return z.new_empty(z.shape[0], down.shape[2])
