"""What the library costs on the CPU where every expert runs: python tools/overhead.py [MODEL …]

Each model is timed beside its converted copy with routers, at τ = 0, in float32 and in evaluation
mode: call by call in turn, so that other work on the machine meets both alike. MODEL is one of
`MODELS`, whose weights are random, or the folder of a sentence encoder; without any, all of
`MODELS`. Prints a table in Markdown: medians, and of the paired calls' ratios the median and, in
brackets, the 20th and the 80th percentile.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

import d2dmoe
from d2dmoe.benchmark.common import machine

ROUTER_WIDTH = 128  # as `d2dmoe.train_routers` and the command line have it
Call = Callable[[nn.Module], object]


def vit() -> tuple[nn.Module, dict[str, Call]]:
    """timm's ViT-S/16, 8 images at 224."""
    import timm

    images = torch.randn(8, 3, 224, 224)
    model = timm.create_model("vit_small_patch16_224")
    return model, {"8 images": lambda m: m(images)}


def gpt2() -> tuple[nn.Module, dict[str, Call]]:
    """GPT-2 small: a prompt of 256 tokens, and a step after it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    prompt = torch.randint(50257, (1, 256))

    def step(model: nn.Module) -> object:
        cache = caches.get(model)
        if cache is None:
            cache = caches[model] = model(prompt, use_cache=True).past_key_values
        out = model(prompt[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return out

    caches: dict[nn.Module, object] = {}
    model = GPT2LMHeadModel(GPT2Config())
    return model, {"prompt of 256": lambda m: m(prompt, use_cache=True), "a step after 256": step}


def encoder(folder: str) -> tuple[nn.Module, dict[str, Call]]:
    """16 texts of 128 tokens."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True)
    tokens = torch.randint(model.config.vocab_size, (16, 128))
    mask = torch.ones_like(tokens)
    return model, {"16 × 128 tokens": lambda m: m(input_ids=tokens, attention_mask=mask)}


MODELS = {"vit_small_patch16_224": vit, "gpt2": gpt2}


def pairs(call: Call, original: nn.Module, converted: nn.Module, n: int) -> Iterator[tuple]:
    """Seconds of both, n times, after three calls that warm up; who is first alternates."""
    for i in range(-3, n):
        taken = {}
        for model in (original, converted) if i % 2 else (converted, original):
            start = time.perf_counter()
            call(model)
            taken[model] = time.perf_counter() - start
        if i >= 0:
            yield taken[original], taken[converted]


def line(name: str, n: int) -> None:
    """Print a model's rows."""
    torch.manual_seed(0)
    original, calls = MODELS[name]() if name in MODELS else encoder(name)
    original.float().eval()
    converted = d2dmoe.convert(copy.deepcopy(original))
    d2dmoe.add_routers(converted, "regression", ROUTER_WIDTH)
    for what, call in calls.items():
        with torch.inference_mode():
            found = list(pairs(call, original, converted, n))
        before, after = (1e3 * statistics.median(times) for times in zip(*found, strict=True))
        low, *_, high = statistics.quantiles(ratios := [b / a for a, b in found], n=5)
        ratio = f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
        print(f"| {name} | {what} | {before:.2f} ms | {after:.2f} ms | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--pairs", type=int, default=40, help="of calls")
    args = parser.parse_args()
    print(f"{machine(torch.device('cpu'))['device']}, torch {torch.__version__}\n")
    print("| model | call | dense | converted, τ = 0 | ratio |\n| --- | --- | --- | --- | --- |")
    for name in args.models:
        line(name, args.pairs)


if __name__ == "__main__":
    main()
