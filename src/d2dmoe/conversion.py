"""Converting a dense model in memory: FFNs into experts, a router for each layer."""

from torch import Tensor, nn

from d2dmoe.errors import ModelError
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, check_neurons, split_ffn
from d2dmoe.router import Router
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find, replace


def to_moe(model: nn.Module, neurons: list[Tensor]) -> nn.Module:
    """Replace every FFN, in place, by its experts.

    Args:
        model: dense.
        neurons: of each FFN, in their order, which hidden neurons form the experts: integers
            [n, e], as `experts.assign_neurons` gives them.

    Raises:
        ModelError: there are other numbers of FFNs or of neurons, or weights are no floats; the
            model is as it was.
    """
    ffns = find(model, FFN)
    if len(ffns) != len(neurons):
        raise ModelError(f"the model has {len(ffns)} FFNs, neurons are of {len(neurons)}")
    for name, own in zip(ffns, neurons, strict=True):
        try:
            check_neurons(ffns[name], own)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
    return replace(model, FFN, lambda ffn, layer: split_ffn(ffn, neurons[layer]))


def add_routers(
    model: nn.Module, kind: str, width: int, projection_width: int | None = None
) -> nn.Module:
    """Give every MoE layer, in place, a fresh router, in attention projections of its own width.

    Raises:
        UnknownName: there is no such kind of router.
        ModelError: the model has no MoE layer, or a width is no whole number of at least 1.
    """
    if not find(model, MoE):
        raise ModelError("the model has no MoE layers, which routers are for: split its FFNs first")
    for moe in find(model, MoE).values():
        add_router(moe, kind, width if moe.role == "ffn" else projection_width or width)
    return model


def add_router(moe: MoE, kind: str, width: int) -> None:
    """Give a layer, in place, a fresh router of its own device and dtype.

    Raises:
        UnknownName: there is no such kind.
        ModelError: the width is no whole number of at least 1.
    """
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
