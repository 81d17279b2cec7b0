"""Whole models' wall-clock time: dense, compiled, as narrow as what dynamic-k executes, dynamic-k.

Weights and inputs are random, sizes real. On CUDA models are compiled block by block (equal blocks
share one compilation) and timed in CUDA graphs; on the CPU they run eagerly.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from d2dmoe.benchmark.common import DTYPES, machine, width
from d2dmoe.benchmark.float8 import has_float8, to_float8
from d2dmoe.benchmark.masks import nearest
from d2dmoe.benchmark.routed import Routed, follow, route, to_routed
from d2dmoe.compression.quantize import quantize_experts
from d2dmoe.config.benchmarks import ModelBenchmark, Timed
from d2dmoe.config.model import TransformerConfig
from d2dmoe.ffn import FFN
from d2dmoe.jobs.progress import logger
from d2dmoe.models.build import create_model
from d2dmoe.surgery import find
from d2dmoe.timing import Timing, compare

COLUMNS = [
    "device", "torch", "triton", "dtype", "model", "batch", "tokens", "num_experts", "expert_size",
    "mask", "fraction", "backend", "median_ms", "p20_ms", "p80_ms", "peak_mb",
]  # fmt: skip

# Attention that is causal by itself. For "sdpa" transformers looks whether a mask is needed, and,
# where it cannot look, as in a CUDA graph, makes one: slow, and compiled blocks are compiled again.
UNMASKED = "sdpa_unmasked"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)

Build = Callable[[int], nn.Module]  # a dense model of so many hidden neurons
Bind = Callable[[nn.Module], Callable[[], object]]  # the call of a model that is timed
Share = Callable[[nn.Module, Callable[[], object], float], float]  # as `routed.route`


def model_rows(
    name: str,
    cfg: ModelBenchmark,
    device: torch.device,
    points: Mapping[str, Tensor],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of `COLUMNS`, one per number format, batch, executed share and backend.

    Args:
        name: the column `model`.
        cfg: the model, the experts, and what is timed.
        device: where it runs.
        points: masks recorded of a converted model, bool [layers, tokens, n], by operating point;
            read where `cfg.mask` is `converted`.
        seed: of weights and inputs.

    Returns:
        `tokens` are those of a call; `fraction` is the share really executed, the dense model's 1.
    """
    rows = []
    for dtype in cfg.dtypes:
        for batch in cfg.batches:
            torch.manual_seed(seed)
            inputs, tokens = _inputs(cfg, batch, device, DTYPES[dtype])

            def build(d_ff: int, dtype=dtype) -> nn.Module:
                return dense_model(cfg.model, d_ff, cfg.size, cfg.vocab_size, device, DTYPES[dtype])

            def by_masks(model, _run, fraction, tokens=tokens) -> float:
                return follow(model, nearest(points, fraction), tokens)

            def bind(model: nn.Module, inputs=inputs) -> Callable[[], object]:
                return lambda: model(**inputs)

            timings = time_backends(
                cfg,
                cfg.model.d_ff,
                build,
                bind,
                device,
                share=by_masks if cfg.mask == "converted" else route,
                finish=compile_blocks,
            )
            about = {"model": name, "batch": batch, "tokens": tokens, "mask": cfg.mask}
            rows += rows_of(timings, cfg, cfg.model.d_ff, dtype, device, about)
    return rows


def dense_model(
    cfg: TransformerConfig,
    d_ff: int,
    size: int,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """A model of a configuration with other FFNs, for images or texts of a size; a language model
    for texts without padding."""
    about = {"image_size": size, "classes": [str(i) for i in range(1000)]}
    about |= {"length": size, "vocab_size": vocab_size, "pad_id": None, "end_of_text_id": None}
    model: Any
    with device:
        _options, model = create_model(cfg.model_copy(update={"d_ff": d_ff}), about)
    if cfg.data_kind == "corpus":
        model.set_attn_implementation(UNMASKED)
    return model.to(dtype).eval()


def _inputs(
    cfg: ModelBenchmark, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Any], int]:
    """Random arguments of the model, and their tokens."""
    model: Any = cfg.model
    if model.data_kind == "images":
        grid = cfg.size // model.patch_size
        x = torch.randn(batch, 3, cfg.size, cfg.size, device=device, dtype=dtype)
        return {"x": x}, batch * (grid**2 + 1)
    ids = torch.randint(cfg.vocab_size, (batch, cfg.size), device=device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if model.data_kind == "corpus":
        inputs["use_cache"] = False
    else:  # as texts of several lengths need; ready made, or some versions look into it
        shape = (batch, 1, cfg.size, cfg.size)
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.bool, device=device)
    return inputs, batch * cfg.size


def time_backends(
    cfg: Timed,
    d_ff: int,
    build: Build,
    bind: Bind,
    device: torch.device,
    share: Share = route,
    convert: Callable[[nn.Module, Timed], nn.Module] = to_routed,
    finish: Callable[[nn.Module], nn.Module] | None = None,
    eight_bits: bool = False,
) -> dict[tuple[str, float], Timing]:
    """Time a model in its forms.

    Args:
        cfg: experts and executed shares.
        d_ff: hidden neurons of the dense FFNs.
        build: makes the dense model.
        bind: makes the function that is timed.
        device: where it runs.
        convert: gives a dense model experts and routers.
        share: lets a converted model run a share of its experts, and returns that really executed.
        finish: compiles a model, in place, where the device is CUDA; None: it runs eagerly.
        eight_bits: whether weights of eight bits are timed too, of FFNs without biases.

    Returns:
        Timings by backend and executed share.
    """
    torch.compiler.reset()  # what was compiled for an earlier model
    compiled = finish is not None and device.type == "cuda"
    if finish is None or not compiled:
        finish = unchanged
    dense = build(d_ff)
    with torch.inference_mode():
        functions = {("dense_eager", 1.0): bind(dense)}
        if compiled:
            functions["dense_compiled", 1.0] = bind(finish(copy.deepcopy(dense)))
        if eight_bits and has_float8(device):
            functions["dense_fp8", 1.0] = bind(finish(to_float8(copy.deepcopy(dense))))
    for wanted in cfg.fractions:
        routed = convert(copy.deepcopy(dense), cfg)
        with torch.inference_mode():
            run = bind(routed)
            fraction = share(routed, run, wanted)
            functions["mlp_equal_flops", fraction] = bind(finish(build(width(d_ff, fraction))))
            functions["dynamic_k", fraction] = run
            if eight_bits:
                int8 = quantize_experts(copy.deepcopy(routed))
                functions["dynamic_k_int8", fraction] = bind(finish(int8))
        finish(routed)
    # Every width is a compilation of its own; beyond the limit blocks would silently run eagerly.
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=64):
        return compare(functions, device, cfg.round_s, graph=True)


def unchanged(model: nn.Module) -> nn.Module:
    """For what is not compiled."""
    return model


def compile_blocks(model: nn.Module) -> nn.Module:
    """Compile, in place, what holds an FFN or its experts: the model's blocks."""
    for name in find(model, (FFN, Routed)):
        model.get_submodule(name.rpartition(".")[0]).compile(dynamic=False)
    return model


def rows_of(
    timings: Mapping[tuple[str, float], Timing],
    cfg: Timed,
    d_ff: int,
    dtype: str,
    device: torch.device,
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """A row per timing, with what it is of."""
    common = machine(device) | {"dtype": dtype} | about
    common |= {"num_experts": cfg.num_experts, "expert_size": d_ff // cfg.num_experts}
    rows = []
    for (backend, fraction), timing in timings.items():
        rows.append(common | {"fraction": fraction, "backend": backend} | timing._asdict())
        what = f"{about['model']}, batch {about['batch']}, {dtype}"
        logger.info("%s: %s at %.3f took %.4g ms", what, backend, fraction, timing.median_ms)
    return rows
