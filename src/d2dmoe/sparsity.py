"""Sparsity enforcement, L = L_task + α · L_s (paper section 3.1), and counts of active neurons."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from d2dmoe.activations import Activation
from d2dmoe.ffn import FFN, ActivationLayer
from d2dmoe.lookup import look_up, table_of
from d2dmoe.pooling import pooled
from d2dmoe.surgery import find, watch

EPSILON = 1e-8
"""Keeps the Hoyer measure of an all-zero token finite."""


class Activations(NamedTuple):
    """What one layer's activation function made of a batch."""

    pre: Tensor  # its input, [..., d_ff]
    hidden: Tensor  # its output, [..., d_ff]
    activation: Activation  # the function
    projection: bool = False  # whether the layer is the MLP of an attention projection


def square_hoyer(a: Tensor) -> Tensor:
    """‖a‖₁² / (‖a‖₂² + ε) per token: [..., d_ff] -> [...]; 1 for one active neuron, d_ff for all
    equal. Scale-free (Yang et al. 2020; the paper's equation 1)."""
    return a.abs().sum(-1).square() / (torch.linalg.vecdot(a, a) + EPSILON)


def l1(a: Tensor) -> Tensor:
    """‖a‖₁ per token: [..., d_ff] -> [...]."""
    return a.abs().sum(-1)


@dataclass(frozen=True)
class Penalty:
    """A mode of the penalty L_s."""

    name: str
    activation: str | None  # what the FFNs get in place of theirs; None: they keep it
    measure: Callable[[Tensor], Tensor]  # of non-negative activations, [..., d_ff] -> [...]


PENALTIES = table_of(
    [
        Penalty("relu_hoyer", "relu", square_hoyer),
        Penalty("relu_l1", "relu", l1),
        Penalty("gelu_clamped", None, l1),
        Penalty("gelu_hoyer_clamped", None, square_hoyer),
    ]
)


def activation_of(mode: str) -> str | None:
    """The activation that a penalty mode gives the FFNs; None: they keep theirs.

    Raises:
        UnknownName: there is no such mode.
    """
    return look_up(PENALTIES, mode, "penalty").activation


def penalty(mode: str, layers: Iterable[Activations], real_tokens: Tensor | None = None) -> Tensor:
    """L_s, a scalar: the mean over FFNs and tokens of the mode's measure; where attention
    projections were converted too, plus the mean over their MLPs, as the authors have it.

    Measured are the outputs of activations that are exactly 0 for idle neurons, as ReLU's; of
    others, how far pre-activations exceed the threshold below which the output is 0 to single
    precision. So the clamped modes measure ReLU layers, such as those in attention projections, as
    those without do.

    Args:
        mode: a key of `PENALTIES`.
        layers: activations of each layer.
        real_tokens: boolean [...], false for padding; None: all are real.

    Raises:
        UnknownName: there is no such mode.
    """
    measure = look_up(PENALTIES, mode, "penalty").measure
    measures: dict[bool, list[Tensor]] = {}
    for layer in layers:
        measures.setdefault(layer.projection, []).append(_measured(measure, layer))
    means = [torch.stack(values) for values in measures.values()]
    means = [m if real_tokens is None else m[:, real_tokens] for m in means]
    return torch.stack([pooled(m.mean(), m[0].numel()) for m in means]).sum()


def _measured(measure: Callable[[Tensor], Tensor], layer: Activations) -> Tensor:
    """Of each token: [..., d_ff] -> [...]."""
    a = displaced(layer)
    if a.dtype != torch.float16:
        return measure(a)
    with torch.autocast(a.device.type, enabled=False):  # fp16's range is too small for squares
        return measure(a.float())


def displaced(layer: Activations) -> Tensor:
    """What a penalty measures: non-negative activations, 0 for idle neurons, [..., d_ff]."""
    if layer.activation.exact:
        return layer.hidden
    return (layer.pre - layer.activation.threshold).clamp(min=0)


def _half_way(progress: float | Tensor) -> float | Tensor:
    twice = 2 * progress
    return twice.clamp(max=1.0) if isinstance(twice, Tensor) else min(1.0, twice)


# From the share in [0, 1] of the training that is done to that of the penalty's full weight; both
# are tensors where steps are recorded as CUDA graphs.
SCHEDULES: dict[str, Callable[[float | Tensor], float | Tensor]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "linear_warmup": _half_way,
}


def alpha_at(schedule: str, alpha: float, progress: float | Tensor) -> float | Tensor:
    """The penalty's weight when a share `progress` in [0, 1] of the training is done.

    Raises:
        UnknownName: there is no such schedule, a key of `SCHEDULES`.
    """
    return alpha * look_up(SCHEDULES, schedule, "schedule")(progress)


def watch_activations(model: nn.Module) -> AbstractContextManager[dict[str, Activations]]:
    """Record each FFN's `Activations` by the FFN's name."""
    ffns = find(model, FFN)
    activations = {name: ffn.activation for name, ffn in ffns.items()}
    projections = {ffn.activation for ffn in ffns.values() if ffn.role != "ffn"}

    def see(module: ActivationLayer, pre: Tensor, hidden: Tensor) -> Activations:
        return Activations(pre, hidden, module.record, module in projections)

    return watch(activations, see)
