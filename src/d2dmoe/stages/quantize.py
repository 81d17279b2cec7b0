"""A quantised model of any stage (claim C10), dense or routed: int8 weights, not trained on."""

from pathlib import Path

from torch import nn

from d2dmoe.checkpoint import ModelSpec
from d2dmoe.compression.quantize import quantize_weights
from d2dmoe.config.compression import QuantizeConfig
from d2dmoe.conversion import load_model
from d2dmoe.errors import CheckpointError


def quantize(parent: Path, cfg: QuantizeConfig) -> tuple[nn.Module, ModelSpec]:
    """Quantise the weight matrices of a saved model, in evaluation mode.

    Raises:
        CheckpointError: the saved model is missing, damaged or quantised already.
    """
    model, spec = load_model(parent)
    if spec.quantized is not None:
        raise CheckpointError(f"{parent} holds a model that was quantised already")
    return quantize_weights(spec.architecture, model), spec.with_(quantized=cfg.weights)
