"""The layers' sensitivities of a saved model, by a few training samples."""

from pathlib import Path

from torch.nn.functional import cross_entropy

from d2dmoe.checkpoint import Trained, load_model
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.methods.adapmoe.options import SensitivityConfig
from d2dmoe.sensitivity import SensitivityMeter, set_sensitivities
from d2dmoe.stages.drawn import drawn_batches


def measure(parent: Path, cfg: SensitivityConfig, run: Run) -> Trained:
    """A saved routed model whose layers know their sensitivities, which the spec keeps.

    Raises:
        CheckpointError: its sensitivities were measured already.
        UserError: model or data are not in order.
    """
    model, spec = load_model(parent)
    spec.check_new("sensitivity", parent)
    model.to(run.device)
    with SensitivityMeter(model).watching() as meter:
        for inputs, targets in drawn_batches(run, "sensitivity", cfg.samples, cfg.batch_size):
            logits = logits_of(model, inputs).flatten(0, -2).float()
            meter.add(cross_entropy(logits, targets.flatten(), reduction="sum"))
    layers = meter.relative()
    for name, value in layers.items():
        logger.info("%s: sensitivity %.3g", name, value)
    set_sensitivities(model, layers)
    return model, spec.with_part("sensitivity", layers=layers), []
