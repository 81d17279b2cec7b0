"""Calibration: each MoE layer is run both ways on real inputs, and keeps the faster backend."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.backend import Choice
from d2dmoe.inputs import Inputs
from d2dmoe.moe import MoE, watch_inputs
from d2dmoe.surgery import find
from d2dmoe.timing import compare

ROUND_S = 0.01  # of a backend, in each of the rounds that `compare` makes


def calibrate(model: nn.Module, inputs: Inputs, args: tuple[Any, ...] = ()) -> dict[str, Choice]:
    """Let each MoE layer with a router use the backend that is faster, at its present rule.

    Calibrate once for each number of tokens that will be run, as for prefill and decoding. Other
    numbers follow the nearest that the same kernel runs: one of up to `backend.DECODE_TOKENS`
    tokens, another of more. A layer whose rule or threshold changes afterwards is as if
    uncalibrated until it is calibrated anew.

    On CUDA the expert kernel is tuned first, to each shape of a layer that is new on this device:
    seconds for each, since Triton compiles up to eight launches, about two seconds each.

    Args:
        model: in evaluation mode, on its device.
        inputs: a batch of real samples, what the model is called with.
        args: what it is called with by position.

    Returns:
        The choices by layer.
    """
    choices = {}
    with torch.inference_mode():
        with watch_inputs(model) as seen:
            model(*args, **inputs)
        for name, moe in find(model, MoE).items():
            if moe.router is None:
                continue
            z = seen[name]
            mask = moe.selection(moe.router(z))
            if z.is_cuda:
                _tune(moe, z, mask)
            choices[name] = _measure(moe, z, mask)
            moe.backend.remember(choices[name], moe.operating_point)
    return choices


def explain(model: nn.Module) -> dict[str, str]:
    """Why each MoE layer of the model runs as it does, by layer."""
    return {name: moe.explain() for name, moe in find(model, MoE).items()}


def _tune(moe: MoE, z: Tensor, mask: Tensor) -> None:
    """Tune the kernel for many tokens, where it is what such inputs run; the deterministic variant
    has one launch only."""
    from d2dmoe.kernels import decode, tuning  # need Triton, which not every platform has

    z, mask = z.flatten(0, -2), mask.flatten(0, -2)
    if len(z) > decode.MAX_TOKENS and not torch.are_deterministic_algorithms_enabled():
        tuning.tune(z.contiguous(), moe.weights, mask.contiguous())


def _measure(moe: MoE, z: Tensor, mask: Tensor) -> Choice:
    """Both backends on a layer's input z [..., d_model], of which the mask [..., n] is."""
    backends = {name: partial(moe.run, z, name) for name in ("dense", "dynamic_k")}
    ms = {name: timing.median_ms for name, timing in compare(backends, z.device, ROUND_S).items()}
    return Choice(
        backend=min(ms, key=ms.__getitem__),
        tokens=z[..., 0].numel(),
        density=mask.float().mean().item(),
        dense_ms=ms["dense"],
        dynamic_k_ms=ms["dynamic_k"],
        device=torch.cuda.get_device_name(z.device) if z.is_cuda else "CPU",
    )
