"""One layer's wall-clock time at several executed shares (the paper's figures 5 and 11).

The dynamic-k layer is timed with its router, selection and index lists. Beside it stand the dense
layer, in eager torch, with the activation fused into the first product, and compiled, and a dense
layer as narrow as what dynamic-k executes, which no dynamic-k layer can beat.
"""

import platform
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from d2dmoe.benchmark.masks import MASKS
from d2dmoe.benchmark.timing import compare
from d2dmoe.config.benchmarks import LayerBenchmark
from d2dmoe.kernels import ops
from d2dmoe.kernels.experts import Experts, RouterWeights, activate
from d2dmoe.kernels.reference import dense, scores
from d2dmoe.progress import logger

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COLUMNS = [
    "device", "torch", "triton", "dtype", "tokens", "d_model", "num_experts", "expert_size",
    "activation", "mask", "fraction", "backend", "median_ms", "p20_ms", "p80_ms", "peak_mb",
]  # fmt: skip


def layer_rows(
    cfg: LayerBenchmark, dtype: str, device: torch.device, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of `COLUMNS`, one per mask, executed share and backend.

    `fraction` is the share really executed; that of a dense layer is 1. `dynamic_k` is the layer as
    a model runs it: its router makes scores, its experts run by the given mask.
    """
    generator = torch.Generator().manual_seed(seed)
    z, experts, router = _layer(cfg, DTYPES[dtype], device, generator)
    common = _machine(device) | {"dtype": dtype, "tokens": cfg.tokens, "d_model": cfg.d_model}
    common |= {"num_experts": cfg.num_experts, "expert_size": cfg.expert_size}
    common |= {"activation": cfg.activation + (" gated" if cfg.gated else "")}
    rows = []
    for name in cfg.masks:
        functions = {("dense_" + k, 1.0): f for k, f in _dense_functions(z, experts).items()}
        for wanted in cfg.fractions:
            mask = MASKS[name](cfg.tokens, cfg.num_experts, wanted, generator).to(device)
            functions |= _sparse_functions(z, experts, router, mask)
        with torch.inference_mode():
            timings = compare(functions, device, cfg.round_s)
        for (backend, fraction), timing in timings.items():
            point = {"mask": name, "fraction": fraction, "backend": backend}
            rows.append(common | point | timing._asdict())
            logger.info(
                "%s, %s: %s at %.3f took %.4g ms", dtype, name, backend, fraction, timing.median_ms
            )
    return rows


def _layer(
    cfg: LayerBenchmark, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> tuple[Tensor, Experts, RouterWeights]:
    """Random tokens, experts and router of a shape; never zeros, which multiply faster."""
    n, e, d = cfg.num_experts, cfg.expert_size, cfg.d_model

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * shape[-1] ** -0.5).to(device, dtype)

    gate = draw(n, e, d) if cfg.gated else None
    biases = (None, gate, None, None) if cfg.gated else (draw(n, e), None, None, draw(d))
    experts = Experts(draw(n, e, d), draw(n, e, d), cfg.activation, *biases)
    h = cfg.router_width
    router = RouterWeights(draw(h, d), draw(h), draw(n, h), draw(n), "regression")
    return torch.randn(cfg.tokens, d, generator=generator).to(device, dtype), experts, router


def _sparse_functions(
    z: Tensor, experts: Experts, router: RouterWeights, mask: Tensor
) -> dict[tuple[str, float], Callable[[], Tensor]]:
    """What is timed for a mask, by backend and executed share."""
    fraction = mask.float().mean().item()
    neurons = max(1, round(fraction * experts.num_experts * experts.expert_size))
    narrow = _narrowed(experts, neurons)

    def dynamic_k() -> Tensor:
        scores(z, router)
        return ops.expert_ffn(z, mask, experts)

    return {
        ("mlp_equal_flops", fraction): lambda: dense(z, None, narrow),
        ("dynamic_k", fraction): dynamic_k,
    }


def _dense_functions(z: Tensor, experts: Experts) -> dict[str, Callable[[], Tensor]]:
    # The weights as a dense layer has them: [d_ff, d_model] and [d_out, d_ff].
    up, down = experts.up.flatten(0, 1), experts.down.flatten(0, 1).T.contiguous()
    gate = None if experts.gate is None else experts.gate.flatten(0, 1)
    up_bias = None if experts.up_bias is None else experts.up_bias.flatten()

    def eager() -> Tensor:
        if gate is None:
            hidden = activate(linear(z, up, up_bias), experts.activation)
        else:
            hidden = activate(linear(z, gate), experts.activation) * linear(z, up)
        return linear(hidden, down, experts.down_bias)

    functions = {"eager": eager}
    if z.is_cuda:
        functions["compiled"] = torch.compile(eager, mode="max-autotune-no-cudagraphs")
        if gate is None and up_bias is not None and experts.activation != "gelu_tanh":

            def addmm() -> Tensor:
                gelu = experts.activation == "gelu"
                hidden = torch._addmm_activation(up_bias, z, up.T, use_gelu=gelu)
                return linear(hidden, down, experts.down_bias)

            functions["addmm"] = addmm
    return functions


def _narrowed(experts: Experts, neurons: int) -> Experts:
    """A dense layer of the first neurons, as one expert."""

    def cut(weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight.flatten(0, 1)[None, :neurons].contiguous()

    x = experts
    biases = (cut(x.up_bias), cut(x.gate), cut(x.gate_bias), x.down_bias)
    return Experts(cut(x.up), cut(x.down), x.activation, *biases)


def _machine(device: torch.device) -> dict[str, str]:
    try:
        import triton
    except ImportError:
        triton = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    version = triton.__version__ if triton else "-"
    return {"device": name, "torch": torch.__version__, "triton": version}


def _cpu() -> str:
    """The processor and the threads in use."""
    name = platform.processor() or platform.machine()
    try:
        lines = open("/proc/cpuinfo", encoding="utf-8").read().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} threads"


def all_rows(cfgs: Iterable[LayerBenchmark], device: torch.device) -> list[dict[str, Any]]:
    """The rows of several layers, each in all of its dtypes."""
    return [row for cfg in cfgs for dtype in cfg.dtypes for row in layer_rows(cfg, dtype, device)]
