"""Converted models: from a dense model in memory, and from files of any stage."""

from pathlib import Path

from torch import Tensor, nn

from d2dmoe.checkpoint import ModelSpec, dense_model, load_weights, read_model
from d2dmoe.compression.quantize import quantize_weights
from d2dmoe.ffn import FFN
from d2dmoe.methods.avit.halting import add_halting
from d2dmoe.methods.ztw.exits import add_exits
from d2dmoe.moe import MoE, skip_padding, split_ffn
from d2dmoe.router import Router
from d2dmoe.surgery import find, replace


def to_moe(model: nn.Module, experts: list[Tensor]) -> nn.Module:
    """Replace every FFN, in place, by its experts; `experts[i]` is layer i's [n, e] of neurons."""
    replace(model, FFN, lambda ffn, layer: split_ffn(ffn, experts[layer]))
    skip_padding(model)
    return model


def add_routers(
    model: nn.Module, kind: str, width: int, projection_width: int | None = None
) -> nn.Module:
    """Give every MoE layer, in place, a fresh router, in attention projections of its own width."""
    for moe in find(model, MoE).values():
        own = width if moe.role == "ffn" else projection_width or width
        router = Router(moe.d_model, own, moe.num_experts, kind)
        moe.router = router.to(moe.up.device)
    return model


def build(spec: ModelSpec) -> nn.Module:
    """The modules of a spec of any stage, with fresh weights."""
    model = dense_model(spec)
    if spec.num_experts is not None:
        replace(model, FFN, lambda ffn, _: MoE(ffn, _num_experts(ffn, spec)))
        skip_padding(model)
    if spec.router is not None:
        add_routers(model, spec.router.kind, spec.router.width, spec.router.projection_width)
    if spec.exits is not None:
        add_exits(model, spec)
    if spec.halting is not None:
        add_halting(model, spec.halting.gamma, spec.halting.beta)
    if spec.quantized is not None:
        quantize_weights(spec.architecture, model)
    return model


def _num_experts(ffn: FFN, spec: ModelSpec) -> int:
    return spec.num_experts if ffn.role == "ffn" else ffn.d_ff // spec.projections.expert_size


def load_model(path: Path) -> tuple[nn.Module, ModelSpec]:
    """A saved model of any stage, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or no saved model.
    """
    spec, tensors = read_model(path)
    model = build(spec)
    load_weights(model, tensors, path)
    return model.eval(), spec
