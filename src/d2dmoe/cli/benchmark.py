"""`d2dmoe benchmark`: how much time the experts that are left out save on this device."""

import copy
from typing import Annotated, Any

import typer

from d2dmoe.cli import options as of

PANEL = "Measure"


def run(
    folder: of.Folder,
    data: of.Data,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Samples of a call; once for each size that is timed.",
            show_default="1 and 32",
            rich_help_panel=of.DATA,
        ),
    ] = None,
    round_s: Annotated[
        float,
        typer.Option("--round", min=0.01, help="Seconds of each form in each of five rounds."),
    ] = 1.0,
    text_column: of.TextColumn = of.TEXT,
    max_length: of.MaxLength = of.LENGTH,
    seed: of.Seed = of.SEED,
    device: of.Device = of.AUTO,
    yes: of.Yes = False,
    as_json: of.AsJson = False,
) -> None:
    """Time a converted model at its operating point, beside the same model without routers.

    Both run eagerly, in turn, on test samples of the data; medians are compared. Each layer first
    tries on them whether leaving experts out is faster than running all, and keeps what is faster,
    so that a model is not slower than its routers make it. Where few experts run, time is saved
    from larger experts and more tokens on.

    Examples:

    - `d2dmoe benchmark sparse --data my.csv`
    - `d2dmoe benchmark sparse --data my.csv --batch-size 1 --batch-size 8 --device cuda`
    """
    from d2dmoe.cli.models import check_converted
    from d2dmoe.cli.opened import Loading
    from d2dmoe.cli.output import report
    from d2dmoe.cli.samples import Data
    from d2dmoe.cli.tasks import source_of

    rows = Data(data, text_column, seed=seed)
    rows.split("test")
    check_converted(folder)
    source = source_of(str(folder), rows, 1, Loading(device, max_length, yes))
    found = [_times(source, size, round_s) for size in batch_size or (1, 32)]
    report({"folder": folder, "times": found}, _text(found), as_json)


def _times(source: Any, size: int, round_s: float) -> dict[str, Any]:
    """Of a call with so many test samples, in milliseconds."""
    import torch

    from d2dmoe.api.batches import as_batches
    from d2dmoe.benchmark.common import machine
    from d2dmoe.cli.output import say
    from d2dmoe.kernels.calibration import calibrate
    from d2dmoe.timing import compare

    say(f"timing batches of {size}")
    model, rows = source.opened.model, source.data.split("test")[:size]
    inputs = source.opened.encode([row.content for row in rows])
    (batch,) = as_batches([inputs], model)
    place, dense = next(model.parameters()).device, _without_routers(model)
    choices = calibrate(model, batch.kwargs).values()
    with torch.inference_mode():
        functions = {"dense": lambda: batch.outputs(dense), "routed": lambda: batch.outputs(model)}
        timings = compare(functions, place, round_s)
    return {
        "device": machine(place)["device"],
        "batch_size": len(rows),
        "tokens": max(choice.tokens for choice in choices),
        "executed": sum(choice.density for choice in choices) / len(choices),
        "layers_that_skip": sum(choice.backend == "dynamic_k" for choice in choices),
        "layers": len(choices),
        "dense": timings["dense"],
        "operating_point": timings["routed"],
        "speedup": timings["dense"].median_ms / timings["routed"].median_ms,
    }


def _without_routers(model: Any) -> Any:
    """A copy that has the same weights and runs every expert as one product."""
    from d2dmoe.moe import MoE
    from d2dmoe.surgery import find

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    dense = copy.deepcopy(model, shared)
    for moe in find(dense, MoE).values():
        moe.router = None
    return dense


def _text(found: list[dict[str, Any]]) -> str:
    from d2dmoe.cli.output import table

    headers = ("batch", "tokens", "experts run", "layers that skip", "dense", "routed", "speed-up")
    rows = [
        [
            str(row["batch_size"]),
            str(row["tokens"]),
            f"{row['executed']:.0%}",
            f"{row['layers_that_skip']} of {row['layers']}",
            f"{row['dense'].median_ms:.3g} ms",
            f"{row['operating_point'].median_ms:.3g} ms",
            f"{row['speedup']:.2f}",
        ]
        for row in found
    ]
    return f"{table(headers, rows)}\n\n{found[0]['device']}"
