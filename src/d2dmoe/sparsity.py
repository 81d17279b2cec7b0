"""Sparsity enforcement, L = L_task + α · L_s (paper section 3.1), and counts of active neurons."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.inputs import Inputs, real_tokens
from d2dmoe.surgery import find, watch

GELU_DISPLACEMENT = -10.0
"""c of the clamped modes: GELU is zero to single precision below it."""

EPSILON = 1e-8
"""Keeps the Hoyer measure of an all-zero token finite."""


class Activations(NamedTuple):
    """What one layer's activation function made of a batch."""

    pre: Tensor  # its input, [..., d_ff]
    hidden: Tensor  # its output, [..., d_ff]
    relu: bool  # whether it is ReLU


def uses_relu(mode: str) -> bool:
    """Whether a penalty mode replaces the FFN's activation by ReLU."""
    return mode.startswith("relu")


def set_activation(model: nn.Module, name: str) -> None:
    """Give every FFN of the model the activation `name`."""
    for ffn in find(model, FFN).values():
        ffn.set_activation(name)


def square_hoyer(a: Tensor) -> Tensor:
    """‖a‖₁² / (‖a‖₂² + ε) per token: [..., d_ff] -> [...]; 1 for one active neuron, d_ff for all
    equal. Scale-free (Yang et al. 2020; the paper's equation 1)."""
    return a.abs().sum(-1).square() / (torch.linalg.vecdot(a, a) + EPSILON)


def penalty(mode: str, layers: Iterable[Activations], real_tokens: Tensor | None = None) -> Tensor:
    """L_s: the mean over layers and tokens of the mode's measure, a scalar.

    Args:
        mode: `relu_hoyer`, `relu_l1`, `gelu_clamped` or `gelu_hoyer_clamped`; the clamped ones
            measure ReLU layers, such as those in attention projections, as those without.
        layers: activations of each layer.
        real_tokens: boolean [...], false for padding; None: all are real.
    """
    measures = torch.stack([_measure(mode, layer) for layer in layers])
    return (measures if real_tokens is None else measures[:, real_tokens]).mean()


def _measure(mode: str, layer: Activations) -> Tensor:  # [..., d_ff] -> [...]
    a = layer.hidden if layer.relu else (layer.pre - GELU_DISPLACEMENT).clamp(min=0)
    return square_hoyer(a) if "hoyer" in mode else a.abs().sum(-1)


def alpha_at(schedule: str, alpha: float, progress: float) -> float:
    """The penalty's weight when a share `progress` in [0, 1] of the training is done."""
    ramp = {"constant": 1.0, "linear": progress, "linear_warmup": min(1.0, 2 * progress)}
    return alpha * ramp[schedule]


def watch_activations(model: nn.Module) -> AbstractContextManager[dict[str, Activations]]:
    """Record each FFN's `Activations` by the FFN's name."""
    activations = {name: ffn.activation for name, ffn in find(model, FFN).items()}

    def see(module: nn.Module, pre: Tensor, hidden: Tensor) -> Activations:
        return Activations(pre, hidden, isinstance(module, nn.ReLU))

    return watch(activations, see)


def active_neurons(layer: Activations) -> Tensor:
    """Active neurons of each token: [..., d_ff] -> integers [...].

    ReLU neurons are active above 0. GELU is never exactly 0, so a GELU neuron counts as active when
    its pre-activation exceeds the displacement, below which its output is 0 to single precision.
    """
    active = layer.hidden > 0 if layer.relu else layer.pre > GELU_DISPLACEMENT
    return active.sum(-1)


def count_active(model: nn.Module, batches: Iterable[Inputs]) -> Tensor:
    """Histogram of active neurons per token, integers [layers, d_ff + 1]: entry [l, m] is the
    number of tokens, padding left out, with m active neurons in the FFN of block l."""
    ffns = {name: ffn for name, ffn in find(model, FFN).items() if ffn.role == "ffn"}
    d_ff = next(iter(ffns.values())).d_ff
    histogram = torch.zeros(len(ffns), d_ff + 1, dtype=torch.int64)
    with torch.inference_mode(), watch_activations(model) as activations:
        for inputs in batches:
            model(**inputs)
            real = real_tokens(inputs)
            for layer, name in enumerate(ffns):
                count = active_neurons(activations[name])
                count = count.flatten() if real is None else count[real]
                histogram[layer] += torch.bincount(count.cpu(), minlength=d_ff + 1)
    return histogram
