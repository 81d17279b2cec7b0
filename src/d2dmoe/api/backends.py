"""Which layers skip experts: those where that is faster, measured on a person's own inputs."""

from typing import Any

import torch
from torch import nn

from d2dmoe.api.batches import as_batches
from d2dmoe.api.forwards import unwrapped
from d2dmoe.backend import Choice
from d2dmoe.errors import ModelError
from d2dmoe.kernels.calibration import calibrate, explain
from d2dmoe.moe import MoE
from d2dmoe.surgery import find, in_mode


def choose_backends(model: nn.Module, batch: Any) -> dict[str, Choice]:
    """Let each layer of experts run as is faster: skip those that are not selected, or run all as
    one product. Both are timed on the layer's own inputs, at its present operating point.

    Measure once for each number of tokens that will be run, as for prefill and for decoding; other
    numbers follow the nearest by ratio. A layer whose operating point changes is as if unmeasured.

    On CUDA the kernel for many tokens is tuned first, to each shape of a layer that is new on this
    device, which takes seconds a shape.

    Args:
        model: with routers, on its device; run in evaluation mode.
        batch: real inputs, in one of the forms of `as_batches`.

    Returns:
        The choices by layer; printed, each says why.

    Raises:
        ModelError: the model has no layer of experts with a router.
        DataError: the model cannot be called with the batch.
    """
    model = _routed(model)
    (given,) = as_batches([batch], model)
    with in_mode(model, training=False):
        with torch.inference_mode():
            given.outputs(model)  # or it is refused
        return calibrate(model, given.kwargs, given.args)


def explain_backends(model: nn.Module) -> dict[str, str]:
    """Why each layer of experts runs as it does, by layer.

    Raises:
        ModelError: the model has no layer of experts with a router.
    """
    return explain(_routed(model))


def _routed(model: nn.Module) -> nn.Module:
    """The model inside of any wrapper."""
    model = unwrapped(model)
    if not any(moe.router is not None for moe in find(model, MoE).values()):
        raise ModelError(
            f"{type(model).__name__} has no experts with routers, which alone can be skipped: "
            "d2dmoe.convert(model), then d2dmoe.train_routers(model, batches, steps=…)"
        )
    return model
