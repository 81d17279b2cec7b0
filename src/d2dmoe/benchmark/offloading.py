"""Decoding's time where experts lie in host memory: `generate()` of a Llama with random weights.

Texts are sampled, so that tokens differ as those of real texts do, and by one seed, so that all
forms generate the same. The time of a token is what further tokens add to a call.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.benchmark.common import DTYPES, machine
from d2dmoe.benchmark.llama import llama
from d2dmoe.benchmark.routed import route, to_experts
from d2dmoe.config.benchmarks import LlamaBenchmark
from d2dmoe.offloading.offload import Offloaded, offload

COLUMNS = [
    "device", "torch", "triton", "dtype", "model", "num_experts", "fraction", "resident",
    "prefetch", "ms_per_token", "tokens_per_s", "hit_rate", "misses_per_token",
    "fetched_per_token", "peak_mb",
]  # fmt: skip
TEXTS, ROUNDS = 4, 3  # texts that caches are divided by; calls of which the median counts


def offloading_rows(
    name: str,
    cfg: LlamaBenchmark,
    device: torch.device,
    shares: Sequence[float],
    new_tokens: int = 64,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rows of `COLUMNS`, of each number format and executed share: the resident model, and one for
    each share of the experts that the device holds, with fetching ahead and without.

    Args:
        name: the column `model`.
        cfg: the model; `context` tokens are read before others are generated.
        device: where it runs.
        shares: of the experts, in [0, 1].
        new_tokens: that are timed.
        seed: of weights, texts and sampling.

    Returns:
        What a form has not is empty: `resident`, hits and copies of the resident model, and on the
        CPU `peak_mb`, the memory of a call with the model's own.
    """
    for dtype, wanted in product(cfg.dtypes, cfg.fractions):
        torch.manual_seed(seed)
        longest = cfg.model_copy(update={"context": cfg.context + new_tokens})
        build, _bind = llama(longest, 1, device, DTYPES[dtype])
        texts = torch.randint(cfg.vocab_size, (TEXTS, cfg.context), device=device)
        model = to_experts(build(cfg.d_ff), cfg)
        about: dict[str, Any] = dict.fromkeys(COLUMNS, "") | machine(device)
        about |= {"dtype": dtype, "model": name, "num_experts": cfg.num_experts}
        about["fraction"] = _route(model, texts, wanted)
        for row in _forms(model, texts, new_tokens, shares, seed):
            yield about | row


@torch.inference_mode()
def _route(model: nn.Module, texts: Tensor, wanted: float) -> float:
    """Let the layers run a share of their experts; returns that really executed."""
    return route(model, lambda: model(input_ids=texts[:1]), wanted)


def _forms(
    model: nn.Module, texts: Tensor, new_tokens: int, shares: Sequence[float], seed: int
) -> Iterator[dict[str, Any]]:
    """The resident model's row, and those of shares."""
    prompt = texts[:1]
    yield _timed(model, prompt, new_tokens, seed)
    for share, prefetch in product(shares, (True, False)):
        offloaded = offload(model, share, [texts], prefetch=prefetch)
        row = {"resident": share, "prefetch": prefetch} | _timed(model, prompt, new_tokens, seed)
        yield row | _traffic(offloaded, prompt, new_tokens, seed)
        offloaded.restore()


def _traffic(offloaded: Offloaded, prompt: Tensor, new_tokens: int, seed: int) -> dict[str, float]:
    """Hits and copies of the tokens after the first, for which the whole prompt is read."""
    found = []
    for count in (1, 1 + new_tokens):
        offloaded.reset()
        _generate(offloaded.model, prompt, count, seed)
        found.append(offloaded.traffic)
    read, all_tokens = found
    uses, misses = all_tokens.uses - read.uses, all_tokens.misses - read.misses
    return {
        "hit_rate": 1 - misses / uses if uses else 1.0,
        "misses_per_token": misses / new_tokens,
        "fetched_per_token": (all_tokens.fetched - read.fetched) / new_tokens,
    }


def _timed(model: nn.Module, prompt: Tensor, new_tokens: int, seed: int) -> dict[str, float]:
    """Milliseconds of a token, tokens a second, and on CUDA the peak memory."""
    device = prompt.device
    for count in (1, new_tokens):  # compiles kernels, fills caches
        _generate(model, prompt, count, seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rounds = [
        _seconds(model, prompt, 1 + new_tokens, seed) - _seconds(model, prompt, 1, seed)
        for _ in range(ROUNDS)
    ]
    each = sorted(rounds)[ROUNDS // 2] / new_tokens
    found = {"ms_per_token": 1e3 * each, "tokens_per_s": 1 / each}
    if device.type == "cuda":
        found["peak_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def _seconds(model: nn.Module, prompt: Tensor, count: int, seed: int) -> float:
    start = time.perf_counter()
    _generate(model, prompt, count, seed)
    if prompt.is_cuda:
        torch.cuda.synchronize(prompt.device)
    return time.perf_counter() - start


def _generate(model: Any, prompt: Tensor, count: int, seed: int) -> Tensor:
    """A text of just so many new tokens."""
    torch.manual_seed(seed)
    how = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": True, "pad_token_id": 0}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
