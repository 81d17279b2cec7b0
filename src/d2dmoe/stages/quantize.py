"""A quantised model of any stage (claim C10), dense or routed: int8 weights, not trained on."""

from pathlib import Path

from d2dmoe.checkpoint import Trained, load_model
from d2dmoe.compression.quantize import quantize_weights
from d2dmoe.config.compression import QuantizeConfig
from d2dmoe.jobs.run import Run


def quantize(parent: Path, cfg: QuantizeConfig, _run: Run) -> Trained:
    """Quantise the weight matrices of a saved model, in evaluation mode.

    Raises:
        CheckpointError: the saved model is missing, damaged or quantised already.
    """
    model, spec = load_model(parent)
    spec.check_new("quantize", parent)
    quantize_weights(spec.architecture, model)
    return model, spec.with_part("quantize", weights=cfg.weights), []
