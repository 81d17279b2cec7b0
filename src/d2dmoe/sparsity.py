"""Sparsity enforcement, L = L_task + α · L_s (paper section 3.1), and counts of active neurons."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.inputs import Inputs, real_tokens
from d2dmoe.surgery import find, watch

GELU_DISPLACEMENT = -10.0
"""c of the clamped modes: GELU is zero to single precision below it."""

EPSILON = 1e-8
"""Keeps the Hoyer measure of an all-zero token finite."""


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


def penalty(
    mode: str, layers: Iterable[tuple[Tensor, Tensor]], real_tokens: Tensor | None = None
) -> Tensor:
    """L_s: the mean over layers and tokens of the mode's measure, a scalar.

    Args:
        mode: `relu_hoyer`, `relu_l1`, `gelu_clamped` or `gelu_hoyer_clamped`.
        layers: pre-activations and activations of each layer, both [..., d_ff].
        real_tokens: boolean [...], false for padding; None: all are real.
    """
    measures = torch.stack([_measure(mode, pre, hidden) for pre, hidden in layers])
    return (measures if real_tokens is None else measures[:, real_tokens]).mean()


def _measure(mode: str, pre: Tensor, hidden: Tensor) -> Tensor:  # [..., d_ff] -> [...]
    a = hidden if uses_relu(mode) else (pre - GELU_DISPLACEMENT).clamp(min=0)
    return square_hoyer(a) if "hoyer" in mode else a.abs().sum(-1)


def alpha_at(schedule: str, alpha: float, progress: float) -> float:
    """The penalty's weight when a share `progress` in [0, 1] of the training is done."""
    ramp = {"constant": 1.0, "linear": progress, "linear_warmup": min(1.0, 2 * progress)}
    return alpha * ramp[schedule]


def watch_activations(model: nn.Module) -> AbstractContextManager[dict]:
    """Record each FFN's (pre-activations, activations), both [..., d_ff], by the FFN's name."""
    activations = {name: ffn.activation for name, ffn in find(model, FFN).items()}
    return watch(activations, lambda _module, pre, hidden: (pre, hidden))


def active_neurons(pre: Tensor, hidden: Tensor, activation: str) -> Tensor:
    """Active neurons of each token: [..., d_ff] -> integers [...].

    ReLU neurons are active above 0. GELU is never exactly 0, so a GELU neuron counts as active when
    its pre-activation exceeds the displacement, below which its output is 0 to single precision.
    """
    active = hidden > 0 if activation == "relu" else pre > GELU_DISPLACEMENT
    return active.sum(-1)


def count_active(model: nn.Module, batches: Iterable[Inputs]) -> Tensor:
    """Histogram of active neurons per token, integers [layers, d_ff + 1]: entry [l, m] is the
    number of tokens, padding left out, with m active neurons in layer l."""
    ffns = find(model, FFN)
    d_ff = next(iter(ffns.values())).d_ff
    histogram = torch.zeros(len(ffns), d_ff + 1, dtype=torch.int64)
    with torch.inference_mode(), watch_activations(model) as activations:
        for inputs in batches:
            model(**inputs)
            real = real_tokens(inputs)
            for layer, (name, ffn) in enumerate(ffns.items()):
                count = active_neurons(*activations[name], ffn.activation_name)
                count = count.flatten() if real is None else count[real]
                histogram[layer] += torch.bincount(count.cpu(), minlength=ffn.d_ff + 1)
    return histogram
