"""A model without its least operators, fine-tuned for a short time."""

from pathlib import Path

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.methods.ldpruner.options import LDPrunerConfig
from d2dmoe.methods.ldpruner.ranking import least, shifts
from d2dmoe.methods.ldpruner.removal import ATTENTION, FFN, rebuild
from d2dmoe.stages.drawn import drawn_batches
from d2dmoe.stages.fitting import fit_task


def prune_operators(parent: Path, cfg: LDPrunerConfig, run: Run) -> Trained:
    """Remove the operators of a saved dense model that move its final representation least, each
    ranked alone, and train what is left on the task.

    Raises:
        UserError: model, data or disk are not in order, operators cannot be left out of the
            architecture, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    spec.check_new("ldpruner", parent)
    model.to(run.device)
    drawn = drawn_batches(run, "ldpruner", cfg.samples, cfg.batch_size // cfg.accumulate)
    inputs = [inputs for inputs, _labels in drawn]
    scores = shifts(spec.architecture, model, inputs, run.log_every_s)
    gone = least(scores, cfg.removed)
    for operator, score in sorted(scores.items(), key=lambda item: item[1]):
        kept = "leaves" if operator.parts <= gone else "stays"
        name = " and ".join(operator.sublayers)
        logger.info("%s of block %d moves by %.3g: %s", name, operator.block, score, kept)
    part = {kind: sorted(b for b, own in gone if own == kind) for kind in (ATTENTION, FFN)}
    rebuild(model, spec, **part)
    history = fit_task(model, cfg, run, f"LD-Pruner without {cfg.removed}")
    return model, spec.with_part("ldpruner", **part), history
