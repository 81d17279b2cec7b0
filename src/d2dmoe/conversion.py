"""Converting a dense model in memory: FFNs into experts, a router for each layer."""

from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, split_ffn
from d2dmoe.router import Router
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find, replace


def to_moe(model: nn.Module, neurons: list[Tensor]) -> nn.Module:
    """Replace every FFN, in place, by its experts; `neurons[i]` says which hidden neurons form
    those of layer i, integers [n, e], as `experts.assign_neurons` gives them."""
    return replace(model, FFN, lambda ffn, layer: split_ffn(ffn, neurons[layer]))


def add_routers(
    model: nn.Module, kind: str, width: int, projection_width: int | None = None
) -> nn.Module:
    """Give every MoE layer, in place, a fresh router, in attention projections of its own width."""
    for moe in find(model, MoE).values():
        add_router(moe, kind, width if moe.role == "ffn" else projection_width or width)
    return model


def add_router(moe: MoE, kind: str, width: int) -> None:
    """Give a layer, in place, a fresh router of its own device and dtype."""
    router = Router(moe.d_model, width, moe.num_experts, kind)
    moe.router = router.to(moe.up.device, moe.weights.dtype).train(moe.training)


def rebuild_experts(model: nn.Module, spec: ModelSpec, num_experts: dict[str, int]) -> nn.Module:
    """Experts with fresh weights in place of the FFNs; `num_experts` by the FFNs' role."""
    return replace(model, FFN, lambda ffn, _: MoE(ffn, num_experts[ffn.role]))


def rebuild_routers(
    model: nn.Module, spec: ModelSpec, kind: str, width: int, projection_width: int | None
) -> nn.Module:
    """Routers with fresh weights."""
    return add_routers(model, kind, width, projection_width)
