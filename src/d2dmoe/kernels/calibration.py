"""Calibration: each MoE layer is run both ways on real inputs, and keeps the faster backend."""

from functools import partial

import torch
from torch import Tensor, nn

from d2dmoe.benchmark.timing import compare
from d2dmoe.inputs import Inputs
from d2dmoe.kernels.backend import Choice
from d2dmoe.moe import MoE, watch_inputs
from d2dmoe.surgery import find

ROUND_S = 0.01  # of a backend, in each of the rounds that `compare` makes


def calibrate(model: nn.Module, inputs: Inputs) -> dict[str, Choice]:
    """Let each MoE layer with a router use the backend that is faster, at its present rule.

    Calibrate once for each number of tokens that will be run, as for prefill and decoding; other
    numbers use the nearest. A layer whose rule or threshold changes afterwards is as if
    uncalibrated until it is calibrated anew.

    Args:
        model: in evaluation mode, on its device.
        inputs: a batch of real samples, what the model is called with.

    Returns:
        The choices by layer.
    """
    layers = {name: moe for name, moe in find(model, MoE).items() if moe.router is not None}
    choices = {}
    with torch.inference_mode():
        with watch_inputs(model) as seen:
            model(**inputs)
        for name, moe in layers.items():
            choices[name] = _measure(moe, seen[name])
            moe.backend.remember(choices[name], moe.operating_point)
    return choices


def explain(model: nn.Module) -> dict[str, str]:
    """Why each MoE layer of the model runs as it does, by layer."""
    return {name: moe.explain() for name, moe in find(model, MoE).items()}


def _measure(moe: MoE, z: Tensor) -> Choice:
    """Both backends on a layer's input z [..., d_model]."""
    backends = {name: partial(moe.run, z, name) for name in ("dense", "dynamic_k")}
    ms = {name: timing.median_ms for name, timing in compare(backends, z.device, ROUND_S).items()}
    return Choice(
        backend=min(ms, key=ms.get),
        tokens=z[..., 0].numel(),
        density=moe.selection(moe.router(z)).float().mean().item(),
        dense_ms=ms["dense"],
        dynamic_k_ms=ms["dynamic_k"],
        device=torch.cuda.get_device_name(z.device) if z.is_cuda else "CPU",
    )
