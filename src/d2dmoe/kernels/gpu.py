"""The layer on a CUDA device, of the Triton kernels: what `ops` calls there.

persistent   many tokens: one kernel, of the parts in `routing` and `tiles`
decode       up to 16 tokens
"""

from torch import Tensor

from d2dmoe.kernels import decode, persistent
from d2dmoe.kernels.experts import Experts, RouterWeights
from d2dmoe.kernels.launch import Launch, launch_for
from d2dmoe.kernels.persistent import ROUTER_EXPERTS
from d2dmoe.kernels.reference import scores
from d2dmoe.selection import dynamic_k


def expert_ffn(z: Tensor, mask: Tensor, experts: Experts, launch: Launch | None = None) -> Tensor:
    """See `ops.expert_ffn`."""
    launch = launch or launch_for(z)
    if len(z) == 0:
        return z.new_empty(0, experts.d_out)
    if len(z) <= decode.MAX_TOKENS and not launch.deterministic:
        return decode.run(z, experts, mask=mask)
    return persistent.run(z, experts, launch, mask=mask)


def dynamic_k_ffn(
    z: Tensor, router: RouterWeights, tau: float, experts: Experts, launch: Launch | None = None
) -> Tensor:
    """See `ops.dynamic_k_ffn`."""
    launch = launch or launch_for(z)
    if len(z) == 0:
        return z.new_empty(0, experts.d_out)
    if experts.num_experts > ROUTER_EXPERTS:
        return expert_ffn(z, dynamic_k(scores(z, router), tau), experts, launch)
    if len(z) <= decode.MAX_TOKENS and not launch.deterministic:
        return decode.run(z, experts, router=router, tau=tau)
    return persistent.run(z, experts, launch, router=router, tau=tau)
