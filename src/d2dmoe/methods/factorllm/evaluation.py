"""What a model of few experts costs, and how well it predicts."""

from pathlib import Path

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.evaluation import Measured, MeasureOptions, evaluate_points
from d2dmoe.jobs.run import Run
from d2dmoe.moe import set_selection


def evaluate_factors(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The one operating point of a saved model, the number of experts that it was trained to run;
    see `evaluation.evaluate_routed`.

    Raises:
        UserError: model or data are not in order.
    """
    model, spec = load_model(model_path)
    active = spec.part("factorllm", model_path)["active"]
    return evaluate_points(
        model.to(run.device),
        open_split(run.data, cfg["split"]),
        knob,
        [active],
        lambda value: set_selection(model, "top_k", value),
        cfg["batch_size"],
        run.device,
        run.log_every_s,
    )
