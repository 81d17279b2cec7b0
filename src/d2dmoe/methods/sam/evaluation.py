"""What a model with grouped experts costs, how well it predicts, and where its experts lie."""

from contextlib import ExitStack
from pathlib import Path

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluation import Measured, MeasureOptions, evaluate_points
from d2dmoe.jobs.run import Run
from d2dmoe.methods.sam.grouping import run_share
from d2dmoe.methods.sam.locality import Locality, count_localities


def evaluate_grouped(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The operating points of a saved model, shares of its group's experts that a token runs; see
    `evaluation.evaluate_routed`. Its rows of layers have the columns of `locality.Locality` too.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    split, values = open_split(run.data, cfg["split"]), cfg["values"]
    found: list[Locality] = []
    counted = ExitStack()

    def set_share(share: float) -> None:
        counted.close()  # of the point before
        run_share(model, share)
        found.extend(counted.enter_context(count_localities(model)).values())

    how = (cfg["batch_size"], run.device, run.log_every_s)
    with counted:
        measured = evaluate_points(model, split, knob, values, set_share, *how)
    rows = zip(measured.layers or [], found, strict=True)  # point by point, layer by layer
    return measured._replace(layers=[row | own.row() for row, own in rows])
