"""The dynamic-k mixture of experts that replaces an FFN (paper section 3).

The output is the unweighted sum of the selected experts, plus b2, which lies outside the experts.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from d2dmoe.backend import Backend, check_backend, uncalibrated
from d2dmoe.errors import ModelError, whole
from d2dmoe.ffn import FFN
from d2dmoe.router import Router
from d2dmoe.selection import Selection, check_value
from d2dmoe.surgery import find, watch
from d2dmoe.weights import (
    ExpertWeights,
    activation_function,
    check_dtype,
    dense,
    hidden_neurons,
)

INTEGERS = (torch.int64, torch.int32, torch.int16)

_ops: ModuleType | None = None


def _operators() -> ModuleType:
    """`kernels.ops`, by name, so that what trains a layer does not depend on the kernels."""
    global _ops
    if _ops is None:
        _ops = import_module("d2dmoe.kernels.ops")
    return _ops


class MoE(nn.Module):
    """n experts of e neurons each; without a router every expert runs.

    Parameters: `up` and, if gated, `gate` [n, e, d_model], `down` [n, e, d_out]; where the FFN had
    biases, `up_bias` and `gate_bias` [n, e], `down_bias` [d_out]; else None. d_out is d_model, but
    for some attention projections.
    """

    up: Tensor
    up_bias: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    def __init__(self, ffn: FFN, num_experts: int):
        """A layer of the FFN's shape, activation, device, dtype and mode, its weights uninitialised
        and frozen where the FFN's are.

        Raises:
            ModelError: so many experts do not divide the hidden neurons, or weights are no floats.
        """
        super().__init__()
        _check_split(ffn, num_experts)
        self.d_model, self.d_out, self.role = ffn.d_model, ffn.d_out, ffn.role
        self.num_experts = num_experts
        self.expert_size = ffn.d_ff // num_experts
        for name, layer in (("up", ffn.up), ("gate", ffn.gate), ("down", ffn.down)):
            weight, bias = self._empty(name, layer)
            self.register_parameter(name, weight)
            self.register_parameter(f"{name}_bias", bias)
        self.activation_name = ffn.activation_name
        activation_function(self.activation_name)
        self.router: Router | None = None
        self.selection = Selection()
        self.backend = Backend()
        self.train(ffn.training)
        _operators()  # now: torch.compile follows no import

    def __setstate__(self, state: dict[str, Any]) -> None:  # of one that was pickled
        super().__setstate__(state)
        activation_function(self.activation_name)
        _operators()

    def _empty(self, name: str, layer: nn.Linear | None) -> tuple:
        if layer is None:
            return None, None
        neurons = (self.num_experts, self.expert_size)
        width = self.d_out if name == "down" else self.d_model
        weight = _empty_like(layer.weight, *neurons, width)
        if layer.bias is None:
            return weight, None
        return weight, _empty_like(layer.bias, *((self.d_out,) if name == "down" else neurons))

    @property
    def weights(self) -> ExpertWeights:
        """The weights as the kernels take them."""
        values: dict[str, Any] = {"activation": self.activation_name}
        for name in ("up", "gate", "down"):
            values[name], values[f"{name}_scale"] = self._stored(name)
            values[f"{name}_bias"] = getattr(self, f"{name}_bias")
        return ExpertWeights(**values)

    def _stored(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """A weight as it is stored: itself, or int8 values and their scales."""
        if not is_parametrized(self, name):
            return getattr(self, name), None
        parametrizations: Any = self.parametrizations
        int8 = parametrizations[name]
        return int8.original0, int8.original1

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d_out]
        if self.training or torch.is_grad_enabled():  # the kernels have no gradients
            return self.run(z, "dense")
        return self.run(z, self.backend.pick(z[..., 0].numel(), self.operating_point))

    def run(self, z: Tensor, backend: str) -> Tensor:
        """The layer by a given backend: [..., d_model] -> [..., d_out].

        `dense` computes every expert and masks those that were not selected, and has gradients;
        `dynamic_k` computes the selected ones only; `auto` is the one for an uncalibrated layer.

        Raises:
            UserError: z and the experts are of different dtypes, and autocast is off.
            UnknownName: there is no such backend.
        """
        check_backend(backend)
        weights = self.weights
        check_dtype(z, weights)
        if self.router is None:
            return dense(z, None, weights)
        if weights.mixed:
            backend = "dense"
        unseen = self._unseen(self.router)
        if backend != "dynamic_k" and unseen and self.selection.runs_all:
            return dense(z, None, weights)  # without scores
        if backend == "dynamic_k" and unseen and self._fusible(self.router, z.dtype):
            tokens, router = z.reshape(-1, self.d_model), self.router.weights
            out = _operators().dynamic_k_ffn(tokens, router, self.selection.value, weights)
            return out.reshape(*z.shape[:-1], self.d_out)
        return self.by_mask(z, self.selection(self.router(z)), weights, backend)

    def by_mask(self, z: Tensor, mask: Tensor, weights: ExpertWeights, backend: str) -> Tensor:
        """The layer with the experts of a mask, by a backend: [..., d_model] -> [..., d_out].

        Args:
            z: of the weights' dtype, but under autocast.
            mask: boolean [..., n].
            weights: of all n experts; `dynamic_k` reads those of the mask alone.
            backend: see `run`; `dense` where weights are of two dtypes.
        """
        if backend == "auto":
            backend = uncalibrated(mask, self.expert_size)
        if backend == "dense":
            return dense(z, mask, weights)
        tokens, mask = z.reshape(-1, self.d_model), mask.reshape(-1, self.num_experts)
        return _operators().expert_ffn(tokens, mask, weights).reshape(*z.shape[:-1], self.d_out)

    def _unseen(self, router: Router) -> bool:
        """Whether nothing but the layer itself needs to see scores and mask."""
        return not (self.selection._forward_hooks or router._forward_hooks)

    def _fusible(self, router: Router, dtype: torch.dtype) -> bool:
        """Whether the kernels select by the rule and know the router, and it has the tokens'
        dtype."""
        kernels = self.selection.fused and isinstance(router, Router)
        return kernels and router.dtype == dtype

    @property
    def operating_point(self) -> tuple[str, float]:
        """The rule and its value: a share in [0, 1], or of rules that count experts, how many.

        Raises:
            UnknownName: where it is set, there is no such rule.
            ModelError: where it is set, the value is none of the rule's.
        """
        return self.selection.rule, self.selection.value

    @operating_point.setter
    def operating_point(self, point: tuple[str, float]) -> None:
        rule, value = point
        value = check_value(rule, value, self.num_experts)
        self.selection.rule, self.selection.value = rule, value

    def explain(self) -> str:
        """Why the layer runs as it does."""
        if self.router is None:
            return "dense: the layer has no router, so every expert runs"
        return self.backend.explain(self.operating_point)

    def hidden(self, z: Tensor) -> Tensor:
        """What the experts' down maps multiply: [..., d_model] -> [..., n, e]."""
        return hidden_neurons(z, self.weights)

    def output_norms(self, z: Tensor) -> Tensor:
        """‖E_i(z)‖₂ of every expert, b2 left out: [..., d_model] -> [..., n].

        With G_i = W2_i W2_iᵀ the squared norm is h_iᵀ G_i h_i, which needs no [..., n, d_out].
        """
        hidden, down = self.hidden(z), self.down
        if hidden.dtype != torch.float16:
            return _norms(hidden, down)
        with torch.autocast(z.device.type, enabled=False):  # fp16's range ends at a norm of 256
            return _norms(hidden.float(), down.float())


def _check_split(ffn: FFN, num_experts: int) -> None:
    if ffn.d_ff % whole(num_experts, "num_experts"):
        raise ModelError(f"{num_experts} experts do not divide {ffn.d_ff} hidden neurons")
    for name, layer in (("up", ffn.up), ("gate", ffn.gate), ("down", ffn.down)):
        if layer is not None and not layer.weight.is_floating_point():
            raise ModelError(
                f"the FFN's {name} is {layer.weight.dtype}: split it into experts before its "
                "weights are quantized"
            )


def _empty_like(weight: Tensor, *shape: int) -> nn.Parameter:
    return nn.Parameter(weight.new_empty(shape), weight.requires_grad)


def _norms(hidden: Tensor, down: Tensor) -> Tensor:
    gram = down @ down.transpose(1, 2)  # [n, e, e]
    squared = (torch.einsum("...ne,nef->...nf", hidden, gram) * hidden).sum(-1)
    return squared.clamp(min=0).sqrt()


def split_ffn(ffn: FFN, neurons: Tensor, kind: type[MoE] = MoE) -> MoE:
    """The FFN as experts; with every expert on it equals the FFN up to the order of summation.

    Args:
        ffn: the trained FFN.
        neurons: of each expert, integers [num_experts, expert_size], from
            `experts.assign_neurons`.
        kind: the class of the layer.

    Raises:
        ModelError: these are not all of its hidden neurons, each once, or its weights are no
            floats.
    """
    check_neurons(ffn, neurons)
    moe = kind(ffn, neurons.shape[0])
    neurons = neurons.to(ffn.up.weight.device).long()
    with torch.no_grad():
        moe.down.copy_(ffn.down.weight.T[neurons])  # [n, e, d_out]
        if moe.down_bias is not None:
            moe.down_bias.copy_(ffn.down.bias)  # [d_out]
        for name, layer in (("up", ffn.up), ("gate", ffn.gate)):
            if layer is not None:
                getattr(moe, name).copy_(layer.weight[neurons])  # [n, e, d_model]
                if layer.bias is not None:
                    getattr(moe, f"{name}_bias").copy_(layer.bias[neurons])  # [n, e]
    return moe


def check_neurons(ffn: FFN, neurons: Tensor) -> None:
    """Refuse what is no split of an FFN into experts of one size.

    Raises:
        ModelError: `neurons` are not integers [num_experts, expert_size], every neuron once.
    """
    if not isinstance(neurons, Tensor) or neurons.ndim != 2 or neurons.dtype not in INTEGERS:
        raise ModelError("neurons must be a tensor of integers [num_experts, expert_size]")
    found, expected = neurons.flatten().sort().values.cpu(), torch.arange(ffn.d_ff, device="cpu")
    if not torch.equal(found.long(), expected):
        raise ModelError(
            f"neurons {list(neurons.shape)} must be all of the FFN's {ffn.d_ff}, from 0 on, each "
            "once"
        )
    _check_split(ffn, len(neurons))


def set_selection(model: nn.Module, rule: str, value: float) -> None:
    """Give every MoE layer of the model, those without a router too, the same operating point.

    Raises:
        UnknownName: there is no such rule.
        ModelError: the value is none of the rule's.
    """
    for moe in find(model, MoE).values():
        moe.operating_point = rule, value


def set_operating_point(
    model: nn.Module, rule: str, value: float | Mapping[str, float]
) -> nn.Module:
    """Route the model's layers by a rule at one of its values; returns the model.

    Args:
        model: converted, with routers.
        rule: a key of `selection_rules.RULES`.
        value: τ or a share p in [0, 1], or a number of experts k from 1 on; one for all layers, or
            by the names of layers, of which those that are not named stay as they are.

    Raises:
        UnknownName: there is no such rule.
        ModelError: the model has no MoE layers, one has no router or is not there, or a value is
            none of the rule's; then all layers are as they were.
    """
    moes = _routed(model)
    values = value if isinstance(value, Mapping) else dict.fromkeys(moes, value)
    if strange := [str(name) for name in values if name not in moes]:
        raise ModelError(
            f"the model has no routed layers {', '.join(strange)}; it has {', '.join(moes)}"
        )
    for name, its in values.items():
        try:
            check_value(rule, its, moes[name].num_experts)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
    for name, its in values.items():
        moes[name].operating_point = rule, its
    return model


def operating_point(model: nn.Module) -> dict[str, tuple[str, float]]:
    """The rule and its value of every MoE layer, by the layers' names.

    Raises:
        ModelError: the model has no MoE layers, or one has no router.
    """
    return {name: moe.operating_point for name, moe in _routed(model).items()}


def _routed(model: nn.Module) -> dict[str, MoE]:
    moes = find(model, MoE)
    if not moes:
        raise ModelError("the model has no MoE layers: convert it first")
    if bare := [name for name, moe in moes.items() if moe.router is None]:
        raise ModelError(f"layers without a router run all experts: {', '.join(bare)}")
    return moes


def watch_inputs(model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    """Record the input z [..., d_model] of every MoE layer, by the layer's name."""
    return watch(find(model, MoE), lambda _module, z, _output: z)


def watch_selections(model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
    """Record the selected experts, boolean [..., n], of every MoE layer, by the layer's name."""
    selections = {name: moe.selection for name, moe in find(model, MoE).items()}
    return watch(selections, lambda _module, _scores, mask: mask)
