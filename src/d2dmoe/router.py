"""Routers that predict the L2 norm of each expert's output (paper section 3.3, equation 3)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from d2dmoe.errors import whole
from d2dmoe.lookup import look_up, resolve
from d2dmoe.pooling import pooled
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.weights import RouterWeights

if TYPE_CHECKING:
    from d2dmoe.moe import MoE

SMALLEST_SUM = 1e-12  # of scores, that is divided by


class Router(nn.Module):
    """Linear(d_model, h) → ReLU → Linear(h, n) → non-negative scores.

    Its kind says which function of the logits the scores are: predicted norms are their absolute
    values for `regression`, their squares for `root_regression`; a `classification` router
    (MoEfication) gives probabilities.
    """

    def __init__(self, d_model: int, width: int, num_experts: int, kind: str):
        """`kind` is a key of `ROUTER_KINDS`.

        Raises:
            UnknownName: there is no such kind.
            ModelError: the width is no whole number of at least 1.
        """
        super().__init__()
        self.kind, self.width = kind, whole(width, "width of a router")
        self._scores = resolve(look_up(ROUTER_KINDS, kind, "router kind").scores)
        self.layers = nn.Sequential(
            nn.Linear(d_model, width), nn.ReLU(), nn.Linear(width, num_experts)
        )

    @property
    def weights(self) -> RouterWeights:
        """The weights as the kernels take them."""
        layers: Any = self.layers
        first, last = layers[0], layers[2]
        return RouterWeights(first.weight, first.bias, last.weight, last.bias, self.kind)

    @property
    def dtype(self) -> torch.dtype:
        """Of the scores; tokens of another dtype are brought to it."""
        return self.weights.up.dtype

    def logits(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., n]
        """What the function of the router's kind makes scores of."""
        return self.layers(z.to(self.dtype))

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., n]
        return self._scores(self.logits(z))


def norm_regression_loss(router: Router, moe: "MoE", z: Tensor) -> Tensor:
    """Mean squared error between the scores and the norms of the experts' outputs.

    Args:
        router: of the layer; gradients reach it alone.
        moe: the layer.
        z: its inputs, [tokens, d_model].

    Returns:
        A scalar, the mean over tokens and experts.
    """
    with torch.no_grad():
        norms = moe.output_norms(z)
    return mse_loss(router(z), norms)


def root_regression_loss(router: Router, moe: "MoE", z: Tensor) -> Tensor:
    """Mean squared error between the logits and the square roots of the norms of the experts'
    outputs: ours, not the paper's.

    On norms themselves the error is that of the few largest. Near the dense quality it matters more
    which of the small ones are nearly 0. Arguments and result as of `norm_regression_loss`.
    """
    with torch.no_grad():
        roots = moe.output_norms(z).sqrt()
    return mse_loss(router.logits(z), roots)


def score_shares(scores: Tensor) -> Tensor:
    """Shares of scores that are not negative, [..., n] -> [..., n]; where all are 0 they stay 0."""
    scores = scores.float()
    return scores / scores.sum(-1, keepdim=True).clamp(min=SMALLEST_SUM)


def router_losses(layers: Iterable[tuple[Router, "MoE", Tensor]]) -> Tensor:
    """What routers are trained on: the sum over layers of the loss that their kind has.

    Args:
        layers: routers, their layers, and the layers' inputs [tokens, d_model].

    Returns:
        A scalar; routers share no weights, so each has the gradient of its own loss.
    """
    losses = [
        pooled(resolve(ROUTER_KINDS[router.kind].loss)(router, moe, z), z[..., 0].numel())
        for router, moe, z in layers
    ]
    device = losses[0].device  # layers may lie on several
    return sum((loss.to(device) for loss in losses[1:]), losses[0])
