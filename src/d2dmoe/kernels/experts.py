"""What the kernels work on: the experts' weights as the MoE layer holds them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu

from d2dmoe.errors import UserError
from d2dmoe.ffn import ACTIVATIONS


class Experts(NamedTuple):
    """n experts of e neurons: y = act(z upᵀ + up_bias) down, or with a gate
    (act(z gateᵀ + gate_bias) ⊙ (z upᵀ + up_bias)) down, summed over those selected, + down_bias."""

    up: Tensor  # [n, e, d_model]
    down: Tensor  # [n, e, d_out]
    activation: str  # a key of ffn.ACTIVATIONS
    up_bias: Tensor | None = None  # [n, e]
    gate: Tensor | None = None  # [n, e, d_model]
    gate_bias: Tensor | None = None  # [n, e]
    down_bias: Tensor | None = None  # [d_out], outside the experts
    # Of int8 weights, of which each stands for itself times a positive scale:
    up_scale: Tensor | None = None  # [n, e, 1]
    gate_scale: Tensor | None = None  # [n, e, 1]
    down_scale: Tensor | None = None  # [1, 1, d_out]

    def dequantized(self) -> "Experts":
        """With weights of the scales' dtype."""
        if self.up_scale is None:
            return self
        return self._replace(
            up=self.up * self.up_scale,
            gate=None if self.gate is None else self.gate * self.gate_scale,
            down=self.down * self.down_scale,
            up_scale=None,
            gate_scale=None,
            down_scale=None,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens that the experts take."""
        return (self.up if self.up_scale is None else self.up_scale).dtype

    @property
    def num_experts(self) -> int:
        return self.up.shape[0]

    @property
    def expert_size(self) -> int:
        return self.up.shape[1]

    @property
    def d_model(self) -> int:
        return self.up.shape[2]

    @property
    def d_out(self) -> int:
        return self.down.shape[2]


class RouterWeights(NamedTuple):
    """scores = |relu(z up + up_bias) down + down_bias|, or its sigmoid (classification)."""

    up: Tensor  # [h, d_model]
    up_bias: Tensor  # [h]
    down: Tensor  # [n, h]
    down_bias: Tensor  # [n]
    kind: str  # "regression" or "classification"


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation function by its name, a key of `ffn.ACTIVATIONS`."""
    if activation == "relu":
        return relu(x)
    return gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def check_tokens(z: Tensor, experts: Experts) -> None:
    """Refuse tokens and experts that no backend computes.

    Raises:
        UserError: shapes, dtypes or devices do not fit together; the message names both.
    """
    d_model = experts.d_model
    if z.ndim != 2 or z.shape[1] != d_model:
        raise UserError(f"tokens must be [tokens, {d_model}], these are {list(z.shape)}")
    if z.dtype != experts.dtype:
        raise UserError(f"tokens are {z.dtype}, the experts {experts.dtype}: convert one")
    _check_weights(experts)
    if z.device != experts.up.device:
        raise UserError(
            f"tokens are on {z.device}, the experts on {experts.up.device}: "
            "they must share a device"
        )
    if experts.activation not in ACTIVATIONS:
        raise UserError(f"the activation {experts.activation!r} is none of {list(ACTIVATIONS)}")


def _check_weights(experts: Experts) -> None:
    """All weights are floats of one dtype, or all are int8 with scales of one."""

    def dtypes(name: str) -> tuple[torch.dtype, torch.dtype | None]:
        weight, scale = getattr(experts, name), getattr(experts, f"{name}_scale")
        return weight.dtype, None if scale is None else scale.dtype

    def told(name: str) -> str:
        weight, scale = dtypes(name)
        return f"{weight} with{'out scales' if scale is None else f' {scale} scales'}"

    for name in ("down",) if experts.gate is None else ("down", "gate"):
        if dtypes(name) != dtypes("up"):
            raise UserError(
                f"the experts' {name} is {told(name)}, their up {told('up')}: they must be alike"
            )
    if (experts.up.dtype == torch.int8) != (experts.up_scale is not None):
        raise UserError(f"the experts' weights are {told('up')}: int8 needs them, floats have none")


def check_mask(mask: Tensor, z: Tensor, experts: Experts) -> None:
    """Refuse a mask that is not of these tokens and experts.

    Raises:
        UserError: its shape, dtype or device does not fit.
    """
    n = experts.num_experts
    if mask.shape != (len(z), n) or mask.dtype != torch.bool:
        raise UserError(
            f"the mask must be boolean [{len(z)}, {n}], it is {mask.dtype} {list(mask.shape)}"
        )
    if mask.device != z.device:
        raise UserError(
            f"the mask is on {mask.device}, tokens are on {z.device}: they must share a device"
        )
