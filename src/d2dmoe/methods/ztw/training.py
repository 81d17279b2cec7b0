"""ZTW's heads, trained on the frozen dense model."""

from pathlib import Path

import torch
from torch import Tensor

from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.data.splits import Batch
from d2dmoe.jobs.run import Run
from d2dmoe.methods.early_exits.leaving import UpTo, exit_blocks, watch_states
from d2dmoe.methods.ztw.exits import add_exits
from d2dmoe.methods.ztw.options import ZTWConfig
from d2dmoe.seeding import seed_for
from d2dmoe.stages.fitting import fit_part
from d2dmoe.training import Losses, cross_entropy_loss


def train_ztw(parent: Path, cfg: ZTWConfig, run: Run) -> Trained:
    """Train heads and ensembles for a saved dense model, which stays as it is.

    The paper trains the ensembles after the heads. Here both learn in the same steps: the gradients
    of the ensembles reach no head, and while the rate falls to its end the ensembles see heads
    that hardly change any more. So no share of the steps has to be chosen for either.

    The history's validation columns are those of the last exit's ensemble.

    Raises:
        UserError: model, data or disk are not in order, the training was stopped, or the model has
            no class token, or too few blocks for an exit.
    """
    model, spec = load_dense_model(parent)
    spec = spec.with_part("ztw", every=cfg.every, width=cfg.width)
    torch.manual_seed(seed_for("exits", run.seed))
    add_exits(model, spec, cfg.every, cfg.width).to(run.device).requires_grad_(False)
    exits = model.get_submodule("exits").requires_grad_(True)
    blocks = exit_blocks(model, spec, cfg.every)
    last = UpTo(model, blocks, len(blocks) - 1)
    with watch_states(blocks) as states:

        def losses(batch: Batch, _progress: float) -> Losses:
            inputs, targets = batch
            with torch.no_grad():
                model(**inputs)

            def mean_loss(logits: Tensor) -> Tensor:  # [exits, batch, classes] -> scalar
                each = [cross_entropy_loss(x, targets, cfg.label_smoothing) for x in logits]
                return torch.stack(each).mean()

            heads, ensembles = map(mean_loss, exits(states.values()))
            return {"loss": heads + ensembles, "heads": heads, "ensembles": ensembles}

        history = fit_part(exits, losses, cfg, run, "ztw", validated=last)
    return model, spec, history
