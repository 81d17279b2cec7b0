"""Stage 4: routers, all layers in one pass over the data, the model frozen (paper section 3.3)."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2dmoe.checkpoint import Trained, load_model
from d2dmoe.config.stages import RouterConfig
from d2dmoe.conversion import add_routers
from d2dmoe.data.splits import Batch
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE, watch_inputs
from d2dmoe.padding import real_tokens
from d2dmoe.router import router_losses
from d2dmoe.seeding import seed_for
from d2dmoe.stages.fitting import fit_part
from d2dmoe.surgery import find
from d2dmoe.training import Losses


def train_routers(parent: Path, cfg: RouterConfig, run: Run) -> Trained:
    """Train a router for every layer of a saved model whose FFNs are experts.

    Each router sees its own layer's inputs in the unrouted model, in which every expert runs.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_model(parent)
    model.to(run.device).requires_grad_(False)
    moes = find(model, MoE)
    torch.manual_seed(seed_for("routers", run.seed))
    routers = _detached_routers(model, cfg)
    with watch_inputs(model) as inputs:

        def losses(batch: Batch, _progress: float) -> Losses:
            with torch.no_grad():
                model(**batch[0])
            real = real_tokens(batch[0])
            tokens = [inputs[name] if real is None else inputs[name][real] for name in moes]
            return {"loss": router_losses(zip(routers, moes.values(), tokens, strict=True))}

        history = fit_part(routers, losses, cfg, run, f"{cfg.kind} routers")
    for moe, router in zip(moes.values(), routers, strict=True):
        moe.router = router
    shape = {"kind": cfg.kind, "width": cfg.width, "projection_width": cfg.projection_width}
    return model, spec.with_part("router", **shape), history


def _detached_routers(model: nn.Module, cfg: RouterConfig) -> Any:
    """An `nn.ModuleList` of fresh routers that the model does not use yet, so that all its
    experts run."""
    moes = find(add_routers(model, cfg.kind, cfg.width, cfg.projection_width), MoE).values()
    routers = nn.ModuleList(moe.router for moe in moes if moe.router)
    for moe in moes:
        moe.router = None
    return routers
