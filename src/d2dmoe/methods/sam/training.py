"""A routed model whose experts are grouped, fine-tuned to run those of one group a token."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from d2dmoe.checkpoint import Trained, load_model
from d2dmoe.data.splits import Batch
from d2dmoe.experts import assign_neurons
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.methods.sam.grouping import run_share, selections, set_groups
from d2dmoe.methods.sam.losses import alignment_loss, balance_loss
from d2dmoe.methods.sam.options import SAMConfig
from d2dmoe.moe import MoE, watch_inputs
from d2dmoe.padding import real_tokens, without_padding
from d2dmoe.router import Router, router_losses, score_shares
from d2dmoe.seeding import seed_for
from d2dmoe.stages.fitting import fit_model
from d2dmoe.surgery import find, watch
from d2dmoe.training import Losses, cross_entropy_loss


def train_grouped(parent: Path, cfg: SAMConfig, run: Run) -> Trained:
    """Group the experts of a saved routed model, then train all of it on the task with a share of
    one group's experts executed, on the balance of the groups, and on alignment.

    The model's outputs are sums without weights, so the task gives routers no gradient: they learn
    on by their own loss, and the other two reach them and what comes before them.

    Raises:
        UserError: model, data or disk are not in order, the training was stopped, or the groups do
            not divide the experts.
    """
    model, spec = load_model(parent)
    spec.check_new("sam", parent)
    model.to(run.device)
    for layer, moe in enumerate(find(model, MoE).values()):
        set_groups(moe, group_experts(moe, cfg.groups, seed_for("groups", run.seed, layer)))
    run_share(model, cfg.active)
    history = _fit(model, cfg, run)
    return model, spec.with_part("sam", groups=cfg.groups), history


def group_experts(moe: MoE, groups: int, seed: int) -> Tensor:
    """Clusters of a layer's experts by their centroids, the mean of their neurons' rows of W1 (of a
    GLU: of W_gate) of unit length: integers [groups, n / groups].

    Raises:
        ModelError: the groups do not divide the experts.
    """
    rows = moe.up if moe.gate is None else moe.gate  # [n, e, d_model]
    return assign_neurons(normalize(rows, dim=-1).mean(1), groups, "kmeans", seed)


def _fit(model: nn.Module, cfg: SAMConfig, run: Run) -> list[dict]:
    moes, grouped = find(model, MoE), selections(model)
    routers: dict[str, Router] = {
        name: moe.router for name, moe in moes.items() if moe.router is not None
    }
    selected = watch(grouped, lambda _selection, scores, mask: (scores, mask))
    with watch_inputs(model) as inputs, selected as seen:

        def losses(batch: Batch, _progress: float) -> Losses:
            task = cross_entropy_loss(logits_of(model, batch[0]), batch[1], cfg.label_smoothing)
            real = real_tokens(batch[0])
            balances, alignments = [], []
            for name, selection in grouped.items():
                scores, mask = (without_padding(x, real) for x in seen[name])
                p = score_shares(scores)
                balances.append(balance_loss(selection, p))
                alignments.append(alignment_loss(selection, p, mask))
            balance, alignment = torch.stack(balances).mean(), torch.stack(alignments).mean()
            layers = [
                (router, moes[name], without_padding(inputs[name].detach(), real))
                for name, router in routers.items()
            ]
            own = router_losses(layers)
            loss = task + cfg.balance_weight * balance + cfg.alignment_weight * alignment
            loss = loss + cfg.router_weight * own
            parts = {"task": task, "balance": balance, "alignment": alignment, "routers": own}
            return {"loss": loss} | parts

        return fit_model(model, losses, cfg, run, f"SAM with {cfg.groups} groups")
