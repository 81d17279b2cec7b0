"""What a ViT whose tokens halt costs, and how well it predicts."""

from pathlib import Path

import torch
from torch import Tensor

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluate import MeasureOptions, cost_on
from d2dmoe.jobs.run import Run
from d2dmoe.methods.avit.halting import MeanField, Trace, halting_flops
from d2dmoe.quality import count_parameters, quality
from d2dmoe.surgery import find, watch


def evaluate_halting(
    model_path: Path, knob: str, cfg: MeasureOptions, run: Run
) -> tuple[list[dict], list[dict]]:
    """The one operating point of a saved A-ViT.

    Returns:
        A row with the columns of `evaluate.evaluate_routed`'s points, its knob the target depth;
        and rows layer, tokens: the mean number that the block computes for a sample.

    Raises:
        UserError: model or data are not in order.
    """
    model, spec = load_model(model_path)
    depth = spec.part("avit", model_path)["depth"]
    model.to(run.device)
    samples = open_split(run.data, cfg["split"])
    parts: list[Tensor] = []  # running tokens, [layers, batch] each

    def see(_module: MeanField, trace: Trace, _output: Tensor) -> None:
        parts.append(trace.running.cpu())

    with watch(find(model, MeanField), see):
        metrics = quality(model, samples, cfg["batch_size"], run.device)
    running = torch.cat(parts, 1)  # [layers, samples]
    cost = cost_on(model, samples, run.device)
    point = {"knob": knob, "knob_value": depth}
    point |= {"flops": halting_flops(model, float(cost.dense), running)}
    point |= {"params": count_parameters(model), "tokens": cost.tokens}
    layers = [
        {"layer": layer, "tokens": float(mean)}
        for layer, mean in enumerate(running.double().mean(1))
    ]
    return [point | metrics], layers
