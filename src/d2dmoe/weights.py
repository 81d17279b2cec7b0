"""The weights of experts and routers, as layers hold and kernels take them, and the plain layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from d2dmoe.activations import torch_function
from d2dmoe.errors import UserError
from d2dmoe.lookup import look_up, resolve
from d2dmoe.router_kinds import ROUTER_KINDS

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # as wide as floats of so many bytes

_functions: dict[str, Callable[[Tensor], Tensor]] = {}  # of activations that a layer has had


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The activation `name`. Layers ask once when they are made: torch.compile, which traces their
    forward, follows no import.

    Raises:
        UnknownName: there is no such activation.
    """
    if name not in _functions:
        _functions[name] = torch_function(name)
    return _functions[name]


class ExpertWeights(NamedTuple):
    """n experts of e neurons: y = act(z upᵀ + up_bias) down, or with a gate
    (act(z gateᵀ + gate_bias) ⊙ (z upᵀ + up_bias)) down, summed over those selected, + down_bias."""

    up: Tensor  # [n, e, d_model]
    down: Tensor  # [n, e, d_out]
    activation: str  # a key of ACTIVATIONS
    up_bias: Tensor | None = None  # [n, e]
    gate: Tensor | None = None  # [n, e, d_model]
    gate_bias: Tensor | None = None  # [n, e]
    down_bias: Tensor | None = None  # [d_out], outside the experts
    # Of int8 weights, of which each stands for itself times a positive scale:
    up_scale: Tensor | None = None  # [n, e, 1]
    gate_scale: Tensor | None = None  # [n, e, 1]
    down_scale: Tensor | None = None  # [1, 1, d_out]

    def dequantized(self) -> "ExpertWeights":
        """With weights of the scales' dtype."""
        if self.up_scale is None:
            return self
        return self._replace(
            up=_scaled(self.up, self.up_scale),
            gate=_scaled(self.gate, self.gate_scale),
            down=_scaled(self.down, self.down_scale),
            up_scale=None,
            gate_scale=None,
            down_scale=None,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens that the experts take."""
        return (self.up if self.up_scale is None else self.up_scale).dtype

    @property
    def mixed(self) -> bool:
        """Whether the maps are of two dtypes, as where a down map is kept in fp32."""
        return self.up.dtype != self.down.dtype

    @property
    def num_experts(self) -> int:
        """How many experts the layer has."""
        return self.up.shape[0]

    @property
    def expert_size(self) -> int:
        """Neurons of one expert."""
        return self.up.shape[1]

    @property
    def d_model(self) -> int:
        """Width of the tokens that the experts take."""
        return self.up.shape[2]

    @property
    def d_out(self) -> int:
        """Width of what they give."""
        return self.down.shape[2]


def _scaled(weight: Any, scale: Any) -> Any:
    return None if weight is None else weight * scale


class RouterWeights(NamedTuple):
    """scores = s(relu(z upᵀ + up_bias) downᵀ + down_bias), s as the kind says."""

    up: Tensor  # [h, d_model]
    up_bias: Tensor  # [h]
    down: Tensor  # [n, h]
    down_bias: Tensor  # [n]
    kind: str  # a key of ROUTER_KINDS


def dense(z: Tensor, mask: Tensor | None, weights: ExpertWeights) -> Tensor:
    """Computes every expert and masks those that were not selected: exact, not faster.

    Args:
        z: [..., d_model].
        mask: boolean [..., n]; None: every expert runs.
        weights: of z's dtype; the down map may have another one.

    Returns:
        [..., d_out], of the down map's dtype; gradients reach z and the weights.
    """
    weights = weights.dequantized()
    hidden = hidden_neurons(z, weights)  # [..., n, e]
    if mask is not None:
        hidden = _masked(hidden, mask)
    if weights.mixed:
        hidden = hidden.to(weights.down.dtype)
    return linear(hidden.flatten(-2), weights.down.flatten(0, 1).T, weights.down_bias)


def _masked(hidden: Tensor, mask: Tensor) -> Tensor:
    """Hidden neurons [..., n, e], those outside of a mask [..., n] 0, whatever they were: 0 times
    infinity would be NaN. Where no gradient is asked for, `hidden` itself may be given back."""
    eager_cpu = hidden.device.type == "cpu" and not torch.compiler.is_compiling()
    if torch.is_grad_enabled() or not eager_cpu:
        return torch.where(mask.unsqueeze(-1), hidden, 0)
    whole = BITS[hidden.element_size()]  # clearing all bits in place: a third of the time there
    hidden.view(whole).bitwise_and_(mask.to(whole).neg().unsqueeze(-1))
    return hidden


def hidden_neurons(z: Tensor, weights: ExpertWeights) -> Tensor:
    """What the experts' down maps multiply: [..., d_model] -> [..., n, e].

    Raises:
        UnknownName: there is no such activation.
    """
    n, e = weights.num_experts, weights.expert_size
    weights, activate = weights.dequantized(), activation_function(weights.activation)

    def mapped(weight: Tensor, bias: Tensor | None) -> Tensor:
        out = linear(z, weight.flatten(0, 1), None if bias is None else bias.flatten())
        return out.unflatten(-1, (n, e))

    hidden = mapped(weights.up, weights.up_bias)
    if weights.gate is None:
        return activate(hidden)
    return activate(mapped(weights.gate, weights.gate_bias)) * hidden


def scores(z: Tensor, router: RouterWeights) -> Tensor:
    """A router's scores, not negative: [..., d_model] -> [..., n].

    Raises:
        UnknownName: there is no such kind of router.
    """
    kind = look_up(ROUTER_KINDS, router.kind, "router kind")
    hidden = torch.relu(linear(z, router.up, router.up_bias))
    return resolve(kind.scores)(linear(hidden, router.down, router.down_bias))


def check_dtype(z: Tensor, weights: ExpertWeights) -> None:
    """Refuse tokens of another dtype than the experts'; autocast brings both to its own.

    Raises:
        UserError: they are.
    """
    if z.dtype != weights.dtype and not autocast_dtype(z):
        raise UserError(f"tokens are {z.dtype}, the experts {weights.dtype}: convert one")


def autocast_dtype(z: Tensor) -> torch.dtype | None:
    """What autocast gives linear maps on z's device in place of floats; None: it is off."""
    device = z.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def check_tokens(z: Tensor, weights: ExpertWeights) -> None:
    """Refuse tokens and experts that no backend computes.

    Raises:
        UserError: shapes, dtypes or devices do not fit together; the message names both.
        UnknownName: there is no such activation.
    """
    d_model = weights.d_model
    if z.ndim != 2 or z.shape[1] != d_model:
        raise UserError(f"tokens must be [tokens, {d_model}], these are {list(z.shape)}")
    check_dtype(z, weights)
    _check_dtypes(weights)
    if z.device != weights.up.device:
        raise UserError(
            f"tokens are on {z.device}, the experts on {weights.up.device}: "
            "they must share a device"
        )
    activation_function(weights.activation)


def _check_dtypes(weights: ExpertWeights) -> None:
    """All weights are floats of one dtype, or all are int8 with scales of one."""

    def dtypes(name: str) -> tuple[torch.dtype, torch.dtype | None]:
        weight, scale = getattr(weights, name), getattr(weights, f"{name}_scale")
        return weight.dtype, None if scale is None else scale.dtype

    def described(name: str) -> str:
        weight, scale = dtypes(name)
        return f"{weight} with{'out scales' if scale is None else f' {scale} scales'}"

    up = described("up")
    for name in ("down",) if weights.gate is None else ("down", "gate"):
        if dtypes(name) != dtypes("up"):
            raise UserError(
                f"the experts' {name} is {described(name)}, their up {up}: they must be alike"
            )
    if (weights.up.dtype == torch.int8) != (weights.up_scale is not None):
        raise UserError(f"the experts' weights are {up}: int8 needs them, floats have none")


def check_mask(mask: Tensor, z: Tensor, weights: ExpertWeights) -> None:
    """Refuse a mask that is not of these tokens and experts.

    Raises:
        UserError: its shape, dtype or device does not fit.
    """
    n = weights.num_experts
    if mask.shape != (len(z), n) or mask.dtype != torch.bool:
        raise UserError(
            f"the mask must be boolean [{len(z)}, {n}], it is {mask.dtype} {list(mask.shape)}"
        )
    if mask.device != z.device:
        raise UserError(
            f"the mask is on {mask.device}, tokens are on {z.device}: they must share a device"
        )


def check_router(router: RouterWeights, z: Tensor) -> None:
    """Refuse a router that is not of these tokens' dtype; autocast brings both to its own.

    Raises:
        UserError: it is not.
    """
    if router.up.dtype != z.dtype and not autocast_dtype(z):
        raise UserError(f"tokens are {z.dtype}, the router {router.up.dtype}: convert one")
