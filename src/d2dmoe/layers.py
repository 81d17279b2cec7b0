"""What was put into a model in place of its feed-forward blocks, as plain values that rebuild it.

A model keeps its own class; its FFNs, and attention projections that were converted, are modules of
this package. Their names and shapes, and the operating point, are all that a fresh model of the
class needs before the weights are loaded.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from d2dmoe.attention import FusedProjections, Projection, SelfAttention
from d2dmoe.conversion import add_router
from d2dmoe.errors import ModelError
from d2dmoe.ffn import FFN, ActivationLayer
from d2dmoe.moe import MoE
from d2dmoe.router import Router
from d2dmoe.selection import Selection
from d2dmoe.stand_ins import StandIn
from d2dmoe.surgery import find, put, swap

NESTED = "_used_nested_tensor"  # what a torch encoder did with padding before anything was put in


class Bypass(nn.Identity):
    """Stands where a map or an activation was that an FFN elsewhere in the block now computes."""


class ChannelsFirst(nn.Module):
    """A layer in place of convolutions of one position: its tokens are the positions of an image,
    and features stand before them."""

    def __init__(self, layer: nn.Module, features: int):
        """`features`: their dimension, counted from the last: -3 in images [..., d, height, width].

        Raises:
            ModelError: it is no whole number from -4 to -2.
        """
        if features not in (-2, -3, -4):
            raise ModelError(f"features are the dimension -2, -3 or -4 of a tensor, not {features}")
        super().__init__()
        self.layer, self.features = layer, features

    def forward(self, x: Tensor) -> Tensor:  # [..., d_model, *positions] -> [..., d_out, …]
        out = self.layer(x.movedim(self.features, -1)).movedim(-1, self.features)
        return out.contiguous()  # as of a convolution: what follows may take views


def describe(model: nn.Module) -> dict[str, Any]:
    """The replaced modules of a model by their names, as plain values that JSON has.

    `attentions`, taken apart, and `projections` on their own; `channels_first`, the dimension of
    features where it is not the last; `layers`, FFNs and mixtures of experts; `bypassed`, names of
    modules that became a `Bypass`.

    Raises:
        ModelError: it is a model, or has layers, of another method than D2DMoE.
    """
    if find(model, StandIn):
        raise ModelError(
            "a model without some of its attentions or FFNs is saved by the pipeline alone"
        )
    found: Any = find(model, (FFN, MoE))
    attentions: Any = find(model, (FusedProjections, SelfAttention))
    fused = {name: _fused(attention) for name, attention in attentions.items()}
    inside = tuple(f"{name}." for name in fused)
    projections = find(model, Projection)
    return {
        "attentions": fused,
        "projections": {
            n: {"role": p.role, "widths": [p.in_features, p.out_features], "bias": _has_bias(p)}
            for n, p in projections.items()
            if not n.startswith(inside)
        },
        "channels_first": {name: x.features for name, x in find(model, ChannelsFirst).items()},
        "layers": {name: _described(layer) for name, layer in found.items()},
        "bypassed": list(find(model, Bypass)),
    }


def rebuild(model: nn.Module, described: dict[str, Any]) -> nn.Module:
    """Put modules of these shapes, with fresh weights, in place of those of the same names; returns
    the model. They lie on the device of what they replace and have its dtype.

    Raises:
        AttributeError: the model has no module of a name.
        UnknownName: an activation, a kind of router or a rule is in no table.
    """
    for name, attention in described.get("attentions", {}).items():
        swap(model, name, _apart(model.get_submodule(name), **attention))
    for name, projection in described.get("projections", {}).items():
        swap(model, name, _projection(model.get_submodule(name), **projection))
    for name, features in described.get("channels_first", {}).items():
        swap(model, name, ChannelsFirst(model.get_submodule(name), features))
    for name, layer in described["layers"].items():
        swap(model, name, _rebuilt(model.get_submodule(name), **layer))
    for name in described["bypassed"]:
        put(model, name, Bypass())  # a function may have been there
    leave_fast_path(model)
    return model


def leave_fast_path(model: nn.Module) -> None:
    """Let torch's encoder layers call their modules where one of them is an FFN: their fast path
    reads the weights of `linear1` and calls none. Nor may their encoder then read these, to leave
    padding out. Others may take it as before."""
    for encoder in find(model, nn.TransformerEncoder).values():
        ours = [x for x in encoder.modules() if isinstance(x, FFN | MoE | SelfAttention)]
        allowed = vars(encoder).setdefault(NESTED, getattr(encoder, "use_nested_tensor", False))
        encoder.use_nested_tensor = allowed and not ours
    for layer in find(model, nn.TransformerEncoderLayer).values():
        if isinstance(layer.linear1, FFN | MoE):
            layer.activation_relu_or_gelu = 0
        elif layer.activation_relu_or_gelu == 0:
            layer.activation_relu_or_gelu = _fast_activation(layer.activation)


def _fast_activation(activation: Any) -> int:
    """torch's number of an activation that its fast path computes, else 0."""
    if activation is relu or isinstance(activation, nn.ReLU):
        return 1
    return 2 if activation is gelu or isinstance(activation, nn.GELU) else 0


def _fused(attention: FusedProjections | SelfAttention) -> dict[str, Any]:
    """What rebuilds an attention's maps, those that became FFNs included."""
    if isinstance(attention, SelfAttention):
        return {}
    maps: list[Any] = [attention.q, attention.k, attention.v]
    widths = [m.out_features if isinstance(m, Projection) else m.d_out for m in maps]
    d_model = maps[0].in_features if isinstance(maps[0], Projection) else maps[0].d_model
    described = {"d_model": d_model, "widths": widths, "bias": all(map(_has_bias, maps))}
    return described | ({"groups": attention.groups} if attention.groups > 1 else {})


def _has_bias(module: Any) -> bool:
    return getattr(module, "bias", None) is not None or not isinstance(module, Projection)


def _apart(
    replaced: nn.Module,
    d_model: int = 0,
    widths: Sequence[int] = (),
    bias: bool = False,
    groups: int = 1,
) -> nn.Module:
    """An attention's maps with fresh weights for the place of one that is not taken apart."""
    if isinstance(replaced, nn.MultiheadAttention):
        return SelfAttention(replaced)
    like = next(replaced.parameters())
    weight = like.new_empty(sum(widths), d_model)
    biases = like.new_empty(sum(widths)) if bias else None
    fused = FusedProjections(weight, biases, widths, groups)
    return fused.requires_grad_(True)


def _projection(replaced: nn.Module, role: str, widths: Sequence[int], bias: bool) -> Projection:
    like = next(replaced.parameters())
    d_in, d_out = widths
    made = Projection.of(role, like.new_empty(d_out, d_in), like.new_empty(d_out) if bias else None)
    return made.requires_grad_(True)


def _described(layer: FFN | MoE) -> dict[str, Any]:
    linears: dict[str, Any] = {"up": layer.up, "gate": layer.gate, "down": layer.down}
    if not _is_own(layer):
        raise ModelError(
            f"layers of type {type(layer).__name__} cannot be saved so: restore offloaded ones, "
            "and save a model before it is quantised; those of other methods than D2DMoE are "
            "saved by the pipeline alone"
        )
    if isinstance(layer, FFN):
        biases = [
            n for n, linear in linears.items() if linear is not None and linear.bias is not None
        ]
        rates = {"dropout": layer.dropout.p, "hidden_dropout": layer.hidden_dropout.p}
        return _shape(layer, layer.d_ff, biases) | rates
    biases = [name for name in linears if getattr(layer, f"{name}_bias") is not None]
    rule, value = layer.operating_point
    d_ff = layer.num_experts * layer.expert_size
    described = _shape(layer, d_ff, biases) | {"num_experts": layer.num_experts}
    if layer.router is not None:
        described["router"] = {"kind": layer.router.kind, "width": layer.router.width}
        described |= {"rule": rule, "value": value, "sensitivity": layer.selection.sensitivity}
    return described


def _is_own(layer: FFN | MoE) -> bool:
    """Whether a layer is all that its description says: other methods' have more to them."""
    if isinstance(layer, FFN):
        return type(layer) is FFN and type(layer.activation) is ActivationLayer
    own = type(layer) is MoE and type(layer.selection) is Selection
    return own and isinstance(layer.router, Router | None)


def _shape(layer: FFN | MoE, d_ff: int, biases: list[str]) -> dict[str, Any]:
    return {
        "role": layer.role,
        "d_model": layer.d_model,
        "d_ff": d_ff,
        "d_out": layer.d_out,
        "activation": layer.activation_name,
        "gated": layer.gate is not None,
        "biases": biases,
    }


def _rebuilt(
    replaced: nn.Module,
    *,
    role: str,
    d_model: int,
    d_ff: int,
    d_out: int,
    activation: str,
    gated: bool,
    biases: list[str],
    dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    num_experts: int | None = None,
    router: dict[str, Any] | None = None,
    rule: str = "dynamic_k",
    value: float = 0.0,
    sensitivity: float = 1.0,
) -> FFN | MoE:
    """A layer with fresh weights for the place of a module."""
    weight = next(replaced.parameters())
    place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}

    def linear(name: str, d_in: int, d_out: int) -> nn.Linear:
        return nn.Linear(d_in, d_out, name in biases, **place)

    up, down = linear("up", d_model, d_ff), linear("down", d_ff, d_out)
    gate = linear("gate", d_model, d_ff) if gated else None
    ffn = FFN(up, down, activation, gate, dropout, hidden_dropout, role)
    if num_experts is None:
        return ffn
    moe = MoE(ffn, num_experts)
    if router is not None:
        add_router(moe, **router)
        moe.operating_point = rule, value
        moe.selection.sensitivity = sensitivity
    return moe
