"""What a model with experts removed costs, and how well it predicts."""

from functools import partial
from pathlib import Path

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluation import Measured, MeasureOptions, evaluate_points
from d2dmoe.jobs.run import Run
from d2dmoe.methods.seer.pruning import run_share


def evaluate_active(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The operating points of a saved model, shares of the experts that each layer has left; see
    `evaluation.evaluate_routed`. Their `params` are those that are left.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    return evaluate_points(
        model.to(run.device),
        open_split(run.data, cfg["split"]),
        knob,
        cfg["values"],
        partial(run_share, model),
        cfg["batch_size"],
        run.device,
        run.log_every_s,
    )
