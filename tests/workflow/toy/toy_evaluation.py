"""What is left of a model without some of its hidden neurons."""

from pathlib import Path

import torch

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluation import MeasureOptions, cost_on
from d2dmoe.ffn import FFN
from d2dmoe.jobs.run import Run
from d2dmoe.quality import count_parameters, quality
from d2dmoe.surgery import find


def evaluate_toy(
    model_path: Path, knob: str, cfg: MeasureOptions, run: Run
) -> tuple[list[dict], None]:
    """Rows of operating points: the shares of the hidden neurons that are removed."""
    samples = open_split(run.data, cfg["split"])
    points = []
    for share in cfg["values"]:
        model, _spec = load_model(model_path)
        model.to(run.device)
        cost = cost_on(model, samples, run.device)
        for ffn in find(model, FFN).values():
            _silence(ffn, share)
        left = {name: layer.tokens * (1 - share) for name, layer in cost.layers.items()}
        counted = {"flops": cost.total(left), "params": count_parameters(model)}
        metrics = quality(model, samples, cfg["batch_size"], run.device)
        points.append(
            {"knob": knob, "knob_value": share, "tokens": cost.tokens} | counted | metrics
        )
    return points, None


def _silence(ffn: FFN, share: float) -> None:
    """Zero, in place, the weights behind the hidden neurons that have the smallest."""
    with torch.no_grad():
        smallest = ffn.down.weight.norm(dim=0).argsort()[: round(share * ffn.d_ff)]
        ffn.down.weight[:, smallest] = 0
