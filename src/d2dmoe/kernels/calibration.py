"""Calibration: each MoE layer is run both ways on real inputs, and keeps the faster backend."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from d2dmoe.inputs import Inputs
from d2dmoe.kernels.backend import Choice
from d2dmoe.moe import MoE, watch_inputs
from d2dmoe.surgery import find

REPEATS = 5


def calibrate(model: nn.Module, inputs: Inputs) -> dict[str, Choice]:
    """Let each MoE layer with a router use the backend that is faster, at its present rule.

    Calibrate once for each number of tokens that will be run, as for prefill and decoding; other
    numbers use the nearest. A layer whose rule or threshold changes afterwards runs dense until it
    is calibrated anew.

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
    dense_ms = _median_ms(lambda: moe.run(z, "dense"), z.device)
    dynamic_k_ms = _median_ms(lambda: moe.run(z, "dynamic_k"), z.device)
    return Choice(
        backend="dynamic_k" if dynamic_k_ms < dense_ms else "dense",
        tokens=z[..., 0].numel(),
        density=moe.selection(moe.router(z)).float().mean().item(),
        dense_ms=dense_ms,
        dynamic_k_ms=dynamic_k_ms,
        device=torch.cuda.get_device_name(z.device) if z.is_cuda else "CPU",
    )


def _median_ms(run: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of a call, after one that compiles."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e3

    once()
    return statistics.median(once() for _ in range(REPEATS))
