"""Converted models: from a dense model in memory, and from files of any stage."""

from pathlib import Path

from torch import Tensor, nn

from d2dmoe.checkpoint import ModelSpec, dense_model, load_weights, read_model
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, skip_padding, split_ffn
from d2dmoe.router import Router
from d2dmoe.surgery import find, replace


def to_moe(model: nn.Module, experts: list[Tensor]) -> nn.Module:
    """Replace every FFN, in place, by its experts; `experts[i]` is layer i's [n, e] of neurons."""
    replace(model, FFN, lambda ffn, layer: split_ffn(ffn, experts[layer]))
    skip_padding(model)
    return model


def add_routers(model: nn.Module, kind: str, width: int) -> nn.Module:
    """Give every MoE layer, in place, a fresh router."""
    for moe in find(model, MoE).values():
        router = Router(moe.d_model, width, moe.num_experts, kind)
        moe.router = router.to(moe.up.device)
    return model


def build(spec: ModelSpec) -> nn.Module:
    """The modules of a spec of any stage, with fresh weights."""
    model = dense_model(spec)
    if spec.num_experts is not None:
        replace(model, FFN, lambda ffn, _: MoE(ffn, spec.num_experts))
        skip_padding(model)
    if spec.router is not None:
        add_routers(model, spec.router.kind, spec.router.width)
    return model


def load_model(path: Path) -> tuple[nn.Module, ModelSpec]:
    """A saved model of any stage, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or no saved model.
    """
    spec, tensors = read_model(path)
    model = build(spec)
    load_weights(model, tensors, path)
    return model.eval(), spec
