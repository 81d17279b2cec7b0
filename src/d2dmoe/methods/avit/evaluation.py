"""What a ViT whose tokens halt costs, and how well it predicts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluation import Measured, MeasureOptions, cost_on, per_sample
from d2dmoe.flops import count
from d2dmoe.jobs.run import Run
from d2dmoe.methods.avit.halting import MeanField, Trace
from d2dmoe.quality import count_parameters, outcomes
from d2dmoe.surgery import find, watch


def evaluate_halting(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The one operating point of a saved A-ViT.

    Returns:
        A row whose knob is the target depth; its rows of layers are layer, tokens: the mean number
        that the block computes for a sample.

    Raises:
        UserError: model or data are not in order.
    """
    model, spec = load_model(model_path)
    depth = spec.part("avit", model_path)["depth"]
    model.to(run.device)
    samples = open_split(run.data, cfg["split"])

    def see(_module: MeanField, trace: Trace, _output: Tensor) -> Tensor:
        return trace.running.cpu()  # [layers, batch]

    with watch(find(model, MeanField), see) as seen:
        how = cfg["batch_size"], run.device
        found, parts = outcomes(model, samples, *how, lambda _samples: next(iter(seen.values())))
    running = torch.cat(parts, 1)  # [layers, samples]
    cost = cost_on(model, samples, run.device)
    point = {"knob": knob, "knob_value": depth}
    flops = halting_flops(model, float(cost.dense), running)
    point |= {"flops": flops.mean().item()}
    point |= {"params": count_parameters(model), "tokens": cost.tokens}
    layers = [
        {"layer": layer, "tokens": float(mean)}
        for layer, mean in enumerate(running.double().mean(1))
    ]
    return Measured([point | found.metrics()], layers, per_sample([(found, flops)]))


def halting_flops(model: Any, dense: float, running: Tensor) -> Tensor:
    """FLOPs of each sample, float64 [samples], when blocks compute the running tokens only.

    Args:
        model: the ViT.
        dense: FLOPs of a sample none of whose tokens halts.
        running: tokens per block and sample, integers [layers, samples].
    """
    tokens = model.seq_length
    saved = torch.zeros_like(running[0], dtype=torch.int64)
    for (token, pair), counts in zip(_block_flops(model), running.long(), strict=True):
        saved += token * (tokens - counts) + pair * (tokens**2 - counts.square())
    return dense - saved.double()


def _block_flops(model: Any) -> Iterator[tuple[int, int]]:
    """FLOPs of each block, per token and per pair of tokens: those of n tokens are a n + b n²."""
    embedding = model.encoder.pos_embedding  # [1, tokens, d_model]
    for block in model.encoder.layers:
        one, two = (count(block, {"input": torch.zeros_like(embedding[:, :n])}) for n in (1, 2))
        pair = (two - 2 * one) // 2
        yield one - pair, pair
