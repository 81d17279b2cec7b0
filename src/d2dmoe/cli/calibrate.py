"""`d2dmoe calibrate`: how many experts run, for a budget or for a loss that is tolerated."""

from pathlib import Path
from typing import Annotated, Any

import typer

from d2dmoe.cli import options as of

PANEL = "Convert"


FlopsRatio = Annotated[
    float | None,
    typer.Option(
        help="The budget: FLOPs of the model's forward, as a share of the dense model's.",
        min=0,
        max=1,
        show_default=False,
    ),
]
MaxLossIncrease = Annotated[
    float | None,
    typer.Option(
        help="The tolerance: how much larger than with every expert on the loss may be, as a "
        "share of it: 0.01 for 1 %. A model without a head needs --label-column for it.",
        min=0,
        show_default=False,
    ),
]
PerLayer = Annotated[
    bool,
    typer.Option(
        "--per-layer", help="A value for each layer: better, and takes several times as long."
    ),
]
RuleName = Annotated[
    str, typer.Option(help="How experts are selected: dynamic_k, top_k, coverage or sensitivity.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Write a new folder.", show_default="into the model's own folder"
    ),
]


def run(
    folder: of.Folder,
    data: of.Data,
    flops_ratio: FlopsRatio = None,
    max_loss_increase: MaxLossIncrease = None,
    per_layer: PerLayer = False,
    rule: RuleName = "dynamic_k",
    output: Output = None,
    against: of.Against = None,
    text_column: of.TextColumn = of.TEXT,
    label_column: of.LabelColumn = None,
    samples: of.Samples = None,
    max_length: of.MaxLength = of.LENGTH,
    batch_size: of.BatchSize = of.BATCH,
    seed: of.Seed = of.SEED,
    device: of.Device = of.AUTO,
    yes: of.Yes = False,
    force: of.Force = False,
    as_json: of.AsJson = False,
) -> None:
    """Choose, on validation samples, how many experts run, and save it with the model.

    Give one of --flops-ratio and --max-loss-increase. The model's folder keeps its weights and gets
    the new operating point; with --output it stays as it was.

    Examples:

    - `d2dmoe calibrate sparse --data my.csv --flops-ratio 0.7`
    - `d2dmoe calibrate sparse --data my.csv --max-loss-increase 0.01 --per-layer`
    - `d2dmoe calibrate sparse --data my.csv --flops-ratio 0.5 --output sparse-half`
    """
    if (flops_ratio is None) == (max_loss_increase is None):
        raise typer.BadParameter("give one of --flops-ratio and --max-loss-increase")

    import d2dmoe
    from d2dmoe.cli.folders import check_free, whole
    from d2dmoe.cli.models import check_converted, save
    from d2dmoe.cli.opened import Loading
    from d2dmoe.cli.output import report
    from d2dmoe.cli.samples import Data
    from d2dmoe.cli.tasks import measuring, source_of
    from d2dmoe.lookup import look_up
    from d2dmoe.selection_rules import RULES

    look_up(RULES, rule, "selection rule")
    target = output or folder
    check_free(target, force or output is None)
    rows = Data(data, text_column, label_column, samples, seed)
    rows.split("validation")
    check_converted(folder)
    how = Loading(device, max_length, yes)
    source = source_of(str(folder), rows, batch_size, how, against)
    task = measuring(source, "validation")
    if max_loss_increase is not None:
        _check_tolerable(task)
    found = d2dmoe.calibrate(
        task.on(source.opened.model),
        task.batches,
        flops_ratio=flops_ratio,
        max_loss_increase=max_loss_increase,
        per_layer=per_layer,
        rule=rule,
        loss=task.loss,
    )
    with whole(target) as new:
        save(source.opened, new)
    result = {"folder": target, "quality": task.about, "calibration": found}
    report(result, f"{found}\n\nloss: {task.about}\nsaved in {target}", as_json)


def _check_tolerable(task: Any) -> None:
    """Refuse a tolerance where the loss has no share that could be tolerated."""
    if task.starts_at_0:
        raise typer.BadParameter(
            "the loss of a model without a head is its distance to itself, 0 with every expert on, "
            "so that no share of it can be tolerated: give --flops-ratio, or --label-column"
        )
