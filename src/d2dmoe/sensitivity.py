"""How sensitive the loss is to each layer's output (AdapMoE, arXiv 2408.10284, section 4.1).

A change Δ of a layer's output changes the loss by about half of Δᵀ H Δ, and H is estimated by
squared gradients, as the Fisher information is. So a layer's sensitivity is the mean squared
gradient of the loss at its output. Only ratios matter: they are relative to the most sensitive
layer's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from d2dmoe.errors import ModelError
from d2dmoe.moe import MoE, set_selection
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import Hook, find

Call = tuple[str, Tensor, Tensor | None]  # the layer's name, its output, which tokens are real


class SensitivityMeter:
    """Squared gradients at the outputs of a model's MoE layers, over the forwards of a block.

    ```python
    with SensitivityMeter(model).watching() as meter:
        for batch, targets in samples:
            meter.add(loss_of(model(batch), targets))  # the sum of the samples' losses
    meter.relative()
    ```
    """

    def __init__(self, model: nn.Module):
        """`model`: with MoE layers, of which every expert runs in the block: see `watching`."""
        self._model, self._moes = model, find(model, MoE)
        self._sums = dict.fromkeys(self._moes, 0.0)
        self._numbers = dict.fromkeys(self._moes, 0)
        self._calls: list[Call] = []

    @contextmanager
    def watching(self) -> Iterator[Self]:
        """Keep the outputs of the layers' calls until `add`. The layers run every expert, and have
        their operating points back afterwards."""
        points = {name: moe.operating_point for name, moe in self._moes.items()}
        set_selection(self._model, "dynamic_k", 0.0)
        with watch_padding(self._model) as real_tokens:
            hooks = [
                moe.register_forward_hook(Hook(self._keeping(name, real_tokens)))
                for name, moe in self._moes.items()
            ]
            try:
                yield self
            finally:
                for hook in hooks:
                    hook.remove()
                for name, point in points.items():
                    self._moes[name].operating_point = point

    def _keeping(self, name: str, real_tokens: Callable[[], Tensor | None]) -> Callable:
        def keep(_moe: MoE, _inputs: tuple, output: Tensor) -> None:
            if not output.requires_grad:  # nothing before it is trained: gradients end here
                output.requires_grad_()
            self._calls.append((name, output, real_tokens()))

        return keep

    def add(self, loss: Tensor) -> None:
        """Count the gradients of the calls since the last time; padding does not count.

        Args:
            loss: a scalar, the sum of the samples' losses, so that each output has the gradient of
                its own sample.
        """
        calls, self._calls = self._calls, []
        outputs = [output for _, output, _ in calls]
        gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
        for (name, output, real), gradient in zip(calls, gradients, strict=True):
            values = torch.zeros_like(output) if gradient is None else gradient
            values = without_padding(values, real).double()
            self._sums[name] += float(values.square().sum())
            self._numbers[name] += values.numel()

    def relative(self) -> dict[str, float]:
        """The layers' sensitivities, in [0, 1], by their names; 1 is the most sensitive layer's.

        Raises:
            ModelError: no layer was called, or gradients are no numbers or all 0.
        """
        means = {n: total / max(1, self._numbers[n]) for n, total in self._sums.items()}
        largest = max(means.values(), default=0.0)
        if not 0 < largest < torch.inf or any(mean != mean for mean in means.values()):
            raise ModelError(
                "the loss has no finite gradients at the outputs of the model's experts: is it the "
                "loss of this model's outputs, and the model in float32 or bfloat16?"
            )
        return {name: mean / largest for name, mean in means.items()}


def set_sensitivities(model: nn.Module, sensitivities: Mapping[str, float]) -> nn.Module:
    """Tell the layers, by name, how sensitive they are, for the rule `sensitivity`; returns the
    model.

    Raises:
        ModelError: the model has no such layer, or a value is no number from 0 on.
    """
    moes = find(model, MoE)
    for name, value in sensitivities.items():
        if name not in moes:
            raise ModelError(f"the model has no layer {name} with experts; it has {list(moes)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ModelError(f"{name}: sensitivity = {value!r} must be a number from 0 on")
    for name, value in sensitivities.items():
        moes[name].selection.sensitivity = float(value)
    return model


def rebuild(model: nn.Module, spec: ModelSpec, layers: dict[str, float]) -> nn.Module:
    """Layers that know their sensitivities, by name."""
    return set_sensitivities(model, layers)
