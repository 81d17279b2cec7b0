"""What is left of a model without some of its hidden neurons."""

from pathlib import Path

import torch

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluation import Measured, MeasureOptions, cost_on, per_sample
from d2dmoe.ffn import FFN
from d2dmoe.jobs.run import Run
from d2dmoe.quality import count_parameters
from d2dmoe.quality import outcomes as outcomes_of
from d2dmoe.surgery import find


def evaluate_toy(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The operating points: the shares of the hidden neurons that are removed."""
    samples = open_split(run.data, cfg["split"])
    points, found = [], []
    for share in cfg["values"]:
        model, _spec = load_model(model_path)
        model.to(run.device)
        cost = cost_on(model, samples, run.device)
        for ffn in find(model, FFN).values():
            _silence(ffn, share)
        left = {name: layer.tokens * (1 - share) for name, layer in cost.layers.items()}
        counted = {"flops": cost.total(left), "params": count_parameters(model)}
        outcomes, _ = outcomes_of(model, samples, cfg["batch_size"], run.device)
        point = {"knob": knob, "knob_value": share, "tokens": cost.tokens}
        points.append(point | counted | outcomes.metrics())
        found.append((outcomes, torch.full((len(samples),), counted["flops"])))
    return Measured(points, None, per_sample(found))


def _silence(ffn: FFN, share: float) -> None:
    """Zero, in place, the weights behind the hidden neurons that have the smallest."""
    with torch.no_grad():
        smallest = ffn.down.weight.norm(dim=0).argsort()[: round(share * ffn.d_ff)]
        ffn.down.weight[:, smallest] = 0
