"""Decoding's wall-clock time: a few tokens a call, bound by the weights that are read.

A stack of FFNs of Gemma's form, one step of GPT-2 after a context whose keys and values are cached,
and a Llama. On CUDA all are timed in CUDA graphs. GPT-2's step is not compiled: its cache, which
grows, would be compiled anew for every layer.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.benchmark.common import DTYPES
from d2dmoe.benchmark.llama import compile_whole, llama
from d2dmoe.benchmark.model import compile_blocks, dense_model, rows_of, time_backends
from d2dmoe.benchmark.routed import to_experts
from d2dmoe.config.benchmarks import DecodeBenchmark, StackBenchmark, StepBenchmark
from d2dmoe.ffn import FFN
from d2dmoe.timing import Timing

COLUMNS = [
    "device", "torch", "triton", "dtype", "model", "batch", "context", "num_experts",
    "expert_size", "mask", "fraction", "backend", "median_ms", "p20_ms", "p80_ms", "peak_mb",
]  # fmt: skip


def decode_rows(
    name: str, cfg: DecodeBenchmark, device: torch.device, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of `COLUMNS`, one per number format, batch, executed share and backend.

    Args:
        name: the column `model`.
        cfg: a stack of FFNs, a step of a model, or a Llama.
        device: where it runs.
        seed: of weights and inputs.

    Returns:
        Milliseconds are those of one layer for a stack, of the step for a model.
    """
    stack = isinstance(cfg, StackBenchmark)
    own: Any = cfg  # of any kind
    make, options = FORMS[own.kind]
    d_ff = own.model.d_ff if own.kind == "step" else own.d_ff
    rows = []
    for dtype in cfg.dtypes:
        for batch in cfg.batches:
            torch.manual_seed(seed)
            build, bind = make(own, batch, device, DTYPES[dtype])
            eight_bits = stack and own.eight_bits
            timings = time_backends(
                cfg, d_ff, build, bind, device, eight_bits=eight_bits, **options
            )
            if stack:
                timings = {key: per_layer(t, own.layers) for key, t in timings.items()}
            about = {"model": name, "batch": batch, "mask": "router"}
            about["context"] = 0 if stack else own.context
            rows += rows_of(timings, cfg, d_ff, dtype, device, about)
    return rows


def per_layer(timing: Timing, layers: int) -> Timing:
    """A layer's share of a stack's time; the memory stays the stack's."""
    return Timing._make([*(ms / layers for ms in timing[:3]), timing.peak_mb])


class Block(nn.Module):
    """An FFN with a residual."""

    def __init__(self, ffn: FFN):
        super().__init__()
        self.ffn = ffn

    def forward(self, z: Tensor) -> Tensor:  # [tokens, d_model]
        return z + self.ffn(z)


def _stack(cfg: StackBenchmark, batch: int, device: torch.device, dtype: torch.dtype) -> tuple:
    """How to build and to call distinct FFNs, each on what the one before gave: every call reads
    more weights than the L2 cache holds, as a model's does."""
    z = torch.randn(batch, cfg.d_model, device=device, dtype=dtype)

    def build(d_ff: int) -> nn.Module:
        def linear(width: int, out: int) -> nn.Linear:
            return nn.Linear(width, out, bias=False, device=device, dtype=dtype)

        def ffn() -> FFN:
            up, gate = (linear(cfg.d_model, d_ff) for _ in range(2))
            return FFN(up, linear(d_ff, cfg.d_model), "gelu_tanh", gate)

        return nn.Sequential(*(Block(ffn()) for _ in range(cfg.layers))).eval()

    return build, lambda model: lambda: model(z)


def _step(cfg: StepBenchmark, batch: int, device: torch.device, dtype: torch.dtype) -> tuple:
    """How to build and to call a model for the token after a random context."""
    size = cfg.context + 1
    tokens = torch.randint(cfg.vocab_size, (batch, size), device=device)

    def build(d_ff: int) -> nn.Module:
        return dense_model(cfg.model, d_ff, size, cfg.vocab_size, device, dtype)

    return build, lambda model: decoding_step(model, tokens)


def decoding_step(model: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    """The function that gives the logits [batch, 1, vocabulary] after the last of the tokens
    [batch, tokens], with the keys and values of all others cached; each call finds them as the
    first did."""
    past = model(input_ids=tokens[:, :-1], use_cache=True).past_key_values

    def step() -> Tensor:
        cache = copy.copy(past)
        cache.layers = [copy.copy(layer) for layer in past.layers]  # each grows by concatenation
        return model(input_ids=tokens[:, -1:], past_key_values=cache).logits

    return step


FORMS: dict[str, tuple[Callable[..., tuple], dict[str, Any]]] = {  # by kind: how it is timed
    "ffn": (_stack, {"finish": compile_blocks}),
    "step": (_step, {}),
    "llama": (llama, {"finish": compile_whole, "convert": to_experts}),
}
