"""Adapters and early heads, trained on the frozen dense model."""

from pathlib import Path
from typing import Any

import torch

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.data.splits import Batch
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.methods.dyn_adapter.adapters import Adapter, add_adapters
from d2dmoe.methods.dyn_adapter.options import DynAdapterConfig
from d2dmoe.methods.early_exits.leaving import exit_blocks, watch_states
from d2dmoe.seeding import seed_for
from d2dmoe.stages.fitting import fit_part
from d2dmoe.surgery import find
from d2dmoe.training import Losses, cross_entropy_loss


def train_dyn_adapter(parent: Path, cfg: DynAdapterConfig, run: Run) -> Trained:
    """Train adapters and heads together for a saved dense model, whose own weights stay as they
    are, its classifier's too.

    The loss is the mean of the cross-entropies of all exits, the model's own classifier among them.
    The history's validation columns are those of that classifier.

    Raises:
        UserError: model, data or disk are not in order, the training was stopped, or the model has
            no class token, or too few blocks for an exit.
    """
    model, spec = load_dense_model(parent)
    part: dict[str, Any] = {"width": cfg.width, "every": cfg.every, "head_width": cfg.head_width}
    model.requires_grad_(False)
    torch.manual_seed(seed_for("exits", run.seed))
    add_adapters(model, spec, **part).to(run.device)
    for adapter in find(model, Adapter).values():
        adapter.requires_grad_(True)
    exits: Any = model.get_submodule("exits")
    with watch_states(exit_blocks(model, spec, cfg.every)) as states:

        def losses(batch: Batch, _progress: float) -> Losses:
            inputs, targets = batch
            end = cross_entropy_loss(logits_of(model, inputs), targets, cfg.label_smoothing)
            answers = exits.answers(states.values())
            each = [cross_entropy_loss(x, targets, cfg.label_smoothing) for x in answers]
            early = torch.stack(each)
            return {"loss": torch.cat([early, end[None]]).mean(), "heads": early.mean(), "end": end}

        history = fit_part(model, losses, cfg, run, "Dyn-Adapter", validated=model)
    return model, spec.with_part("dyn_adapter", **part), history
