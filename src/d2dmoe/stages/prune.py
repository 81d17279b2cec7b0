"""A pruned model in the dense model's place (claim C10): the dense one without its least important
heads and neurons, trained on."""

from pathlib import Path
from typing import Any

from torch import nn

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.compression.importance import importance, most_important
from d2dmoe.compression.prune import keep_units, unit_widths
from d2dmoe.config.compression import PruneConfig, remaining
from d2dmoe.errors import CheckpointError
from d2dmoe.ffn import FFN
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.models.build import count_heads
from d2dmoe.spec import ModelSpec
from d2dmoe.stages.drawn import drawn_batches
from d2dmoe.stages.fitting import fit_task
from d2dmoe.surgery import find


def prune(parent: Path, cfg: PruneConfig, run: Run) -> Trained:
    """Remove heads and neurons of a saved dense model, then train all that is left.

    Raises:
        UserError: model, data or disk are not in order, the training was stopped, the model was
            pruned or converted already, or heads cannot be removed from its architecture.
    """
    model, spec = load_dense_model(parent)
    if spec.parts:
        raise CheckpointError(f"{parent} was pruned or converted already; prune the dense model")
    widths = unit_widths(spec.architecture, model, heads=cfg.heads > 0)
    samples = drawn_batches(run, "importance", cfg.samples, cfg.batch_size // cfg.accumulate)
    scores = importance(model.to(run.device), widths, samples)
    kept = _sizes(model, spec, cfg)
    logger.info("what stays of each layer: %s", kept)
    keep_units(
        spec.architecture,
        model,
        kept["heads"],
        kept["d_ff"],
        lambda name, count: most_important(scores[name], count),
    )
    return model, spec.with_part("prune", **kept), fit_task(model, cfg, run, "prune")


def _sizes(model: nn.Module, spec: ModelSpec, cfg: PruneConfig) -> dict[str, Any]:
    """What stays of each layer: heads of an attention (None: all, still fused), and d_ff."""
    d_ff = remaining(next(iter(find(model, FFN).values())).d_ff, cfg.neurons)
    if cfg.heads == 0:
        return {"heads": None, "d_ff": d_ff}
    return {"heads": remaining(count_heads(spec.architecture, model), cfg.heads), "d_ff": d_ff}
