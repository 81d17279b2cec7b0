"""A routed model without its least expected experts, fine-tuned to run fewer of those left."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.checkpoint import Trained, load_model
from d2dmoe.data.splits import Batch
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.methods.seer.options import SEERConfig
from d2dmoe.methods.seer.pruning import keep_experts, kept_experts, run_share
from d2dmoe.moe import MoE, set_selection, watch_inputs
from d2dmoe.padding import real_tokens, without_padding
from d2dmoe.pooling import pooled
from d2dmoe.processes import spread
from d2dmoe.router import SMALLEST_SUM, Router, router_losses, score_shares
from d2dmoe.stages.drawn import drawn_batches
from d2dmoe.stages.fitting import fit_model
from d2dmoe.surgery import find, watch
from d2dmoe.training import Losses, cross_entropy_loss


def prune_experts(parent: Path, cfg: SEERConfig, run: Run) -> Trained:
    """Remove experts of a saved routed model, then train all that is left on the task with a share
    of them executed, the routers' entropy as a penalty.

    The model's outputs are sums without weights, so the task gives routers no gradient: they learn
    on by their own loss, and the entropy reaches them and what comes before them.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_model(parent)
    spec.check_new("seer", parent)
    model.to(run.device)
    kept = kept_experts(_masses(model, cfg, run), cfg.removed, cfg.scope)
    moes = find(model, MoE)
    for name, moe in moes.items():
        logger.info("%s: %d of %d experts stay", name, len(kept[name]), moe.num_experts)
        keep_experts(moe, kept[name].to(run.device))
    run_share(model, cfg.active)
    history = _fit(model, cfg, run)
    set_selection(model, "dynamic_k", 0.0)  # as a model without an operating point has it
    counts = {name: moe.num_experts for name, moe in moes.items()}
    return model, spec.with_part("seer", kept=counts), history


@torch.no_grad()
def _masses(model: nn.Module, cfg: SEERConfig, run: Run) -> dict[str, Tensor]:
    """Sums of predicted norms over the real tokens of some samples, every expert executed: [n] of
    each layer."""
    routers = _routers(model)
    set_selection(model, "dynamic_k", 0.0)

    def masses(batch: Batch) -> dict[str, Tensor]:
        inputs, _targets = batch
        model(**inputs)
        real = real_tokens(inputs)
        return {n: without_padding(x, real).double().sum(0).cpu() for n, x in seen.items()}

    with watch(routers, lambda _router, _z, scores: scores) as seen:
        samples = drawn_batches(run, "seer", cfg.samples, cfg.batch_size // cfg.accumulate)
        parts = spread(samples, masses)
    sums: dict[str, Any] = {name: sum(part[name] for part in parts) for name in routers}
    return sums


def _routers(model: nn.Module) -> dict[str, Router]:
    return {name: moe.router for name, moe in find(model, MoE).items() if moe.router is not None}


def router_entropy(scores: Tensor) -> Tensor:
    """Entropy in nats of the shares of scores, the mean over tokens; 0 where all scores are 0.

    Args:
        scores: not negative, [tokens, n].
    """
    shares = score_shares(scores)
    entropy = -torch.xlogy(shares, shares.clamp(min=SMALLEST_SUM)).sum(-1)
    return pooled(entropy.mean(), entropy.numel())


def _fit(model: nn.Module, cfg: SEERConfig, run: Run) -> list[dict]:
    moes, routers = find(model, MoE), _routers(model)
    scored = watch(routers, lambda _router, _z, scores: scores)
    with watch_inputs(model) as inputs, scored as scores:

        def losses(batch: Batch, _progress: float) -> Losses:
            task = cross_entropy_loss(logits_of(model, batch[0]), batch[1], cfg.label_smoothing)
            real = real_tokens(batch[0])
            seen = {name: without_padding(scores[name], real) for name in routers}
            entropy = torch.stack([router_entropy(x) for x in seen.values()]).mean()
            layers = [
                (router, moes[name], without_padding(inputs[name].detach(), real))
                for name, router in routers.items()
            ]
            own = router_losses(layers)
            loss = task + cfg.entropy_weight * entropy + cfg.router_weight * own
            return {"loss": loss, "task": task, "entropy": entropy, "routers": own}

        return fit_model(model, losses, cfg, run, f"SEER-MoE without {cfg.removed:g}")
