"""Routers for a model in memory: all layers in one pass over the data (paper section 3.3)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from d2dmoe.api.batch import Batch
from d2dmoe.api.batches import as_batches
from d2dmoe.api.fit import FitConfig, Losses, check_whole, fit
from d2dmoe.api.losses import RouterLoss
from d2dmoe.conversion import add_routers
from d2dmoe.errors import UserError
from d2dmoe.lookup import look_up
from d2dmoe.moe import MoE
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.seeding import seed_for
from d2dmoe.surgery import find, in_mode


@torch.inference_mode(False)
@torch.enable_grad()
def train_routers(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    lr: float = 1e-3,
    width: int = 128,
    kind: str = "regression",
    batch_size: int = 8,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Give every layer of a converted model, in place, a router, and train them.

    The model itself is frozen and in eval mode meanwhile, with every expert on. Routers that it
    had are replaced. They learn in float32 and get their layer's dtype.

    Args:
        model: converted.
        batches: see `as_batches`; targets are not needed.
        steps: updates, each on one batch.
        lr: peak learning rate of AdamW, after a warm-up of a tenth of the steps.
        width: hidden width of a router.
        kind: a key of `router_kinds.ROUTER_KINDS`; regression is the paper's.
        batch_size: rows of a `datasets.Dataset` in a batch.
        seed: of fresh weights and the order of batches; the same gives the same routers.

    Returns:
        The history, at most 100 rows: step, lr, loss (the sum over layers of the mean squared
        error of predicted norms).

    Raises:
        UnknownName: there is no such kind.
        UserError: the model has no experts, an option or a batch is impossible, or the loss is not
            finite; the model then is as it was.
    """
    cfg = FitConfig(steps, lr, seed)
    look_up(ROUTER_KINDS, kind, "router kind")
    check_whole("width", width)
    moes = find(model, MoE)
    if not moes:
        raise UserError(f"{type(model).__name__} has no experts: convert it first")
    given = as_batches(batches, model, batch_size=batch_size)
    with _fresh_routers(model, kind, width, seed) as routers, in_mode(model, training=False):
        loss = RouterLoss(model)
        for moe in moes.values():
            moe.router = None  # so that every expert runs
        with loss:

            def losses(batch: Batch, _progress: float) -> Losses:
                with torch.no_grad():
                    batch.outputs(model)
                return {"loss": loss()}

            return fit(model, routers, losses, given, cfg, f"{kind} routers")


@contextmanager
def _fresh_routers(model: nn.Module, kind: str, width: int, seed: int) -> Iterator[nn.ModuleList]:
    """Routers in float32 to be trained; afterwards the model's, or, after an error, those that it
    had before."""
    moes = find(model, MoE).values()
    before = [moe.router for moe in moes]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("routers", seed))
        add_routers(model, kind, width)
    routers: Any = nn.ModuleList(moe.router.float() for moe in moes if moe.router)
    after = before
    try:
        yield routers
        after = list(routers)
    finally:
        for moe, router in zip(moes, after, strict=True):
            moe.router = None if router is None else router.to(moe.weights.dtype)
