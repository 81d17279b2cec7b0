"""Fine-tuning of the routed model, which the paper does not have: the chosen experts learn to do
without the others."""

from pathlib import Path

import torch

from d2dmoe.checkpoint import Trained, load_model
from d2dmoe.config.stages import TuneConfig
from d2dmoe.data.splits import Batch
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE, set_selection, watch_inputs
from d2dmoe.padding import real_tokens
from d2dmoe.router import Router, router_losses
from d2dmoe.stages.fitting import fit_model
from d2dmoe.surgery import find
from d2dmoe.training import Losses, cross_entropy_loss


def tune(parent: Path, cfg: TuneConfig, run: Run) -> Trained:
    """Train all of a saved routed model on the task, with the experts that dynamic-k selects.

    Gradients flow through the selected experts alone; the routers learn on to predict norms, of
    what their layers see in the routed model. A τ drawn anew for each step makes one model good at
    many operating points.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_model(parent)
    moes = find(model, MoE)
    low, high = cfg.tau
    set_selection(model, "dynamic_k", low)
    with watch_inputs(model) as inputs:

        def losses(batch: Batch, _progress: float) -> Losses:
            tau = low + (high - low) * torch.rand((), device=run.device)  # seeded by the step
            for moe in moes.values():
                moe.selection.value = tau
            task = cross_entropy_loss(logits_of(model, batch[0]), batch[1], cfg.label_smoothing)
            real = real_tokens(batch[0])
            seen = [_routed(moe, inputs[name], real) for name, moe in moes.items()]
            routers = router_losses(seen)
            return {"loss": task + cfg.router_weight * routers, "task": task, "routers": routers}

        history = fit_model(model, losses, cfg, run, f"fine-tuning at tau {low:g} to {high:g}")
    set_selection(model, "dynamic_k", 0.0)  # as a model without an operating point has it
    return model, spec, history


def _routed(moe: MoE, z: torch.Tensor, real: torch.Tensor | None) -> tuple:
    """A layer's router, the layer, and its inputs without padding [tokens, d_model]."""
    router: Router | None = moe.router
    z = z.detach()  # the routers' loss trains routers alone
    return router, moe, z.flatten(0, -2) if real is None else z[real]
