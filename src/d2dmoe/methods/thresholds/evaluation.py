"""What a model with thresholds costs, and how well it predicts, at every target density."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluation import (
    Executed,
    Measured,
    MeasureOptions,
    by_sample,
    cost_on,
    per_sample,
    sample_flops,
)
from d2dmoe.ffn import FFN
from d2dmoe.formulas import ffn_flops
from d2dmoe.jobs.progress import Progress
from d2dmoe.jobs.run import Run
from d2dmoe.methods.thresholds.layers import (
    Threshold,
    ThresholdedActivation,
    ThresholdedLinear,
    set_density,
)
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.quality import count_parameters
from d2dmoe.surgery import find, watch


@dataclass(frozen=True)
class Place:
    """Where a model skips units."""

    threshold: Threshold
    role: str  # ffn: hidden channels; else the linear map whose inputs are skipped
    price: int  # FLOPs per token of a unit that is not skipped


def places_of(model: nn.Module) -> dict[str, Place]:
    """All of a model, by the thresholds' names.

    A hidden channel costs its row of the up map, if that is not the one that is compared, and its
    column of the down map; an input costs its column of the map.
    """
    found = {}
    for name, ffn in find(model, FFN).items():
        if isinstance(ffn.activation, ThresholdedActivation):
            threshold = ffn.activation.threshold
            channels = ffn_flops(ffn.d_model, threshold.group, ffn.gate is not None, ffn.d_out)
            price = channels - 2 * threshold.group * ffn.d_model
            found[f"{name}.activation.threshold"] = Place(threshold, ffn.role, price)
    for name, layer in find(model, ThresholdedLinear).items():
        place = Place(layer.threshold, layer.role, 2 * layer.out_features)
        found[f"{name}.threshold"] = place
    return found


def evaluate_density(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The operating points of a saved model with thresholds, one for each target density.

    Its rows of layers are of the places where it skips: role, layer, num_experts (the units that
    can be skipped), experts (the mean that a token does not skip), std.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    samples = open_split(run.data, cfg["split"])
    places = places_of(model)
    cost = cost_on(model, samples, run.device)
    dense = sample_flops(model, samples, run.device, lambda cost: cost.dense).double()
    prices = torch.tensor([[place.price] for place in places.values()])
    counted = {"params": count_parameters(model), "tokens": cost.tokens}
    progress = Progress("evaluating density", len(cfg["values"]), every_s=run.log_every_s)
    points, layers, found = [], [], []
    for index, value in enumerate(cfg["values"]):
        set_density(model, value)
        with _count_skipped(model, places) as skipped:
            how = cfg["batch_size"], run.device
            became, counts = by_sample(model, samples, skipped, *how)
        flops = dense - (counts * prices).sum(0)
        point = {"knob": knob, "knob_value": value}
        points.append(point | {"flops": flops.mean().item()} | counted | became.metrics())
        layers += [point | row for row in _rows(places, skipped)]
        found.append((became, flops))
        progress.update(index + 1)
    return Measured(points, layers, per_sample(found))


@contextmanager
def _count_skipped(model: nn.Module, places: dict[str, Place]) -> Iterator[dict[str, Executed]]:
    """Count the units that tokens, but not padding, skip at every place, by name."""
    counts = {name: Executed() for name in places}
    by_threshold = {id(place.threshold): counts[name] for name, place in places.items()}
    thresholds = {name: place.threshold for name, place in places.items()}
    with watch_padding(model) as real_tokens:

        def see(threshold: Threshold, _values: Tensor, kept: Tensor) -> None:
            mask = without_padding(threshold.skipped(kept), real_tokens())
            by_threshold[id(threshold)].add(mask)

        with watch(thresholds, see):
            yield counts


def _rows(places: dict[str, Place], skipped: dict[str, Executed]) -> Iterator[dict]:
    """Each place's role, index among those of its role, units, and how many of them run."""
    seen: dict[str, int] = {}
    for name, place in places.items():
        index = seen[place.role] = seen.get(place.role, -1) + 1
        units, counts = place.threshold.units, skipped[name]
        row = {"role": place.role, "layer": index, "num_experts": units}
        yield row | {"experts": units - counts.mean, "std": counts.std}
