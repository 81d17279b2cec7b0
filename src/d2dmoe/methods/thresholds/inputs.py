"""TEAL (arXiv 2408.14690): thresholds of the inputs of all linear maps of the blocks."""

from pathlib import Path

import torch

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.jobs.run import Run
from d2dmoe.methods.thresholds.calibration import drawn_inputs, set_quantiles
from d2dmoe.methods.thresholds.greedy import find_paths
from d2dmoe.methods.thresholds.layers import LEVELS, rebuild_inputs
from d2dmoe.methods.thresholds.options import InputThresholdsConfig


def calibrate_inputs(parent: Path, cfg: InputThresholdsConfig, run: Run) -> Trained:
    """Thresholds of the inputs of all linear maps of a saved dense model: TEAL.

    A threshold is that quantile of |x| above which the map's density lies, which a greedy search
    finds for each target density, the mean of a block by cost. The search runs the model hundreds
    of times, and so reads the first batch of the samples alone.

    Raises:
        UserError: model or data are not in order.
    """
    model, spec = load_dense_model(parent)
    rebuild_inputs(model, spec).to(run.device)
    inputs = drawn_inputs(cfg, run)
    set_quantiles(model, inputs)
    targets = torch.linspace(0, 1, LEVELS)
    for threshold, density in find_paths(model, inputs[:1], cfg.step, targets):
        threshold.table = torch.stack([threshold.at(float(x)) for x in density])
    return model, spec.with_part("input_thresholds"), []
