"""Layers that skip small values: hidden channels of an FFN, or inputs of a linear map.

A value is skipped where its score, |value| · scale, is at or below a threshold; CATS and TEAL have
the scale 1, CHESS one for each channel, which amounts to a threshold T / scale for each. What is
skipped is set to 0 here: exact, not faster. A value that is 0 already is skipped at any density.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.attention import ROLES, Projection
from d2dmoe.errors import ModelError
from d2dmoe.ffn import FFN, ActivationLayer
from d2dmoe.models.build import separate_projections
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find, swap

SELECTED = ("q", "o")  # the maps of an attention whose inputs CHESS skips: K and V stay dense
LEVELS = 1001  # target densities 1, 0.999, …, 0, each of which has a threshold


class Threshold(nn.Module):
    """Sets to 0 what is skipped at the target density: [..., width] -> [..., width].

    Neighbouring values may be skipped together, as a unit: where all of them are small.
    """

    table: Tensor  # thresholds of the target densities, rising from 0: [LEVELS]
    scale: Tensor  # [width]

    def __init__(self, width: int, group: int = 1):
        """`group` values are a unit. Until `table` is filled, nothing but zeros is skipped.

        Raises:
            ModelError: units of that size do not divide the values.
        """
        super().__init__()
        if width % group:
            raise ModelError(f"units of {group} do not divide {width} values")
        self.group, self.density = group, 1.0
        self.register_buffer("table", torch.zeros(LEVELS))
        self.register_buffer("scale", torch.ones(width))

    @property
    def units(self) -> int:
        """How many are skipped or not."""
        return len(self.scale) // self.group

    def at(self, density: float) -> Tensor:
        """The threshold of a target density in [0, 1], a scalar: between those of the table."""
        place = (1 - density) * (LEVELS - 1)
        low = min(int(place), LEVELS - 2)
        return torch.lerp(self.table[low], self.table[low + 1], place - low)

    def scores(self, values: Tensor) -> Tensor:
        """Of each unit its largest: [..., width] -> [..., units]."""
        scores = values.abs() * self.scale
        return scores if self.group == 1 else scores.unflatten(-1, (-1, self.group)).amax(-1)

    def forward(self, values: Tensor) -> Tensor:
        small = self.scores(values) <= self.at(self.density)  # NaN is not small: it stays seen
        if self.group > 1:
            small = small.repeat_interleave(self.group, -1)
        return values.masked_fill(small, 0)

    def skipped(self, values: Tensor) -> Tensor:
        """Which units of its output are zeros: [..., width] -> boolean [..., units]."""
        zero = values == 0
        return zero if self.group == 1 else zero.unflatten(-1, (-1, self.group)).all(-1)


class ThresholdedActivation(ActivationLayer):
    """An FFN's activation function, and 0 in place of what is small."""

    def __init__(self, name: str, width: int, group: int):
        """`name` is a key of `activations.ACTIVATIONS`; see `Threshold`."""
        super().__init__(name)
        self.threshold = Threshold(width, group)

    def forward(self, x: Tensor) -> Tensor:  # [..., d_ff]
        return self.threshold(super().forward(x))


class ThresholdedLinear(nn.Linear):
    """A linear map to which small inputs are 0; the names of its weights are Linear's."""

    role: str
    threshold: Threshold

    @classmethod
    def of(cls, linear: nn.Linear, role: str) -> "ThresholdedLinear":
        """The map with its own parameters; `role` is what it does in a block."""
        bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, bias, device="meta")
        layer.weight, layer.role = linear.weight, role
        if bias:
            layer.bias = linear.bias
        layer.threshold = Threshold(linear.in_features)
        return layer

    def forward(self, z: Tensor) -> Tensor:  # [..., in_features] -> [..., out_features]
        return super().forward(self.threshold(z))


def projection_roles(model: nn.Module, roles: Collection[str] = ROLES) -> dict[str, str]:
    """The roles, among some, of the linear maps of attentions that are taken apart, by name."""
    maps = find(model, Projection)
    return {name: layer.role for name, layer in maps.items() if layer.role in roles}


def linear_roles(model: nn.Module) -> dict[str, str]:
    """The roles of all linear maps of the blocks: of the FFNs up, gate and down too."""
    found: dict[str, str] = {}
    for name, ffn in find(model, FFN).items():
        maps: dict[str, Any] = {"up": ffn.up, "gate": ffn.gate, "down": ffn.down}
        found |= {f"{name}.{role}": role for role, layer in maps.items() if layer is not None}
    return projection_roles(model) | found


def threshold_hidden(model: nn.Module, group: int) -> None:
    """Give every FFN, in place, a threshold for units of so many hidden channels.

    Raises:
        ModelError: units of that size do not divide the channels.
    """
    for ffn in find(model, FFN).values():
        layer = ThresholdedActivation(ffn.activation_name, ffn.d_ff, group)
        ffn.activation = layer.train(ffn.training)


def threshold_inputs(model: nn.Module, roles: dict[str, str]) -> None:
    """Give linear maps, in place, thresholds for their inputs; `roles` has theirs by name."""
    for name, role in roles.items():
        linear: Any = model.get_submodule(name)
        swap(model, name, ThresholdedLinear.of(linear, role))


def set_density(model: nn.Module, density: float) -> None:
    """Let all thresholds of a model be those of a target density in [0, 1].

    Raises:
        ModelError: it has none, or the density is outside.
    """
    found = find(model, Threshold)
    if not found:
        raise ModelError("the model has no thresholds")
    if not 0 <= density <= 1:
        raise ModelError(f"a density is from 0 to 1, not {density:g}")
    for threshold in found.values():
        threshold.density = density


def rebuild_hidden(model: nn.Module, spec: ModelSpec, group: int, attention: bool) -> nn.Module:
    """Thresholds of hidden channels, and of the inputs of Q and O; what they are is in the
    weights."""
    threshold_hidden(model, group)
    if attention:
        separate_projections(spec.architecture, model)
        threshold_inputs(model, projection_roles(model, SELECTED))
    return model


def rebuild_inputs(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """Thresholds of the inputs of all linear maps; what they are is in the weights."""
    separate_projections(spec.architecture, model)
    threshold_inputs(model, linear_roles(model))
    return model
