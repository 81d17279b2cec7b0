"""The layer on a CUDA device, of the Triton kernels: what `ops` calls there.

routing   router, selection, index lists
tiles     the experts of many tokens
decode    router, selection and experts of up to 16 tokens
"""

from torch import Tensor

from d2dmoe.kernels.decode import MAX_TOKENS, active_of, decode, select
from d2dmoe.kernels.experts import Experts, RouterWeights
from d2dmoe.kernels.launch import Launch, launch_for
from d2dmoe.kernels.ops import ROUTER_EXPERTS
from d2dmoe.kernels.reference import outside, scores
from d2dmoe.kernels.routing import route, segments_of
from d2dmoe.kernels.tiles import add_experts
from d2dmoe.selection import dynamic_k


def expert_ffn(z: Tensor, mask: Tensor, experts: Experts, launch: Launch | None = None) -> Tensor:
    """See `ops.expert_ffn`."""
    launch = launch or launch_for(z)
    if len(z) == 0:
        return z.new_empty(0, experts.d_out)
    if len(z) <= MAX_TOKENS and not launch.deterministic:
        return decode(z, active_of(mask, experts.d_out), experts)
    out = outside(z, experts)
    add_experts(z, experts, segments_of(mask, launch.superblock), out, launch)
    return out


def dynamic_k_ffn(
    z: Tensor, router: RouterWeights, tau: float, experts: Experts, launch: Launch | None = None
) -> Tensor:
    """See `ops.dynamic_k_ffn`."""
    launch = launch or launch_for(z)
    if len(z) == 0:
        return z.new_empty(0, experts.d_out)
    if experts.num_experts > ROUTER_EXPERTS:
        return expert_ffn(z, dynamic_k(scores(z, router), tau), experts, launch)
    if len(z) <= MAX_TOKENS and not launch.deterministic:
        return decode(z, select(z, router, tau, experts.d_out), experts)
    out = z.new_empty(len(z), experts.d_out)
    segments = route(z, router, tau, out, experts.down_bias, launch.superblock)
    add_experts(z, experts, segments, out, launch)
    return out
