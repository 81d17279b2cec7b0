"""Routers that predict the L2 norm of each expert's output (paper section 3.3, equation 3)."""

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from d2dmoe.kernels.experts import RouterWeights


class Router(nn.Module):
    """Linear(d_model, h) → ReLU → Linear(h, n) → non-negative scores.

    The scores are absolute values for `regression`. A `classification` router (MoEfication) returns
    probabilities; its `logits` are what it is trained on.
    """

    def __init__(self, d_model: int, width: int, num_experts: int, kind: str):
        super().__init__()
        self.kind, self.width = kind, width
        self.layers = nn.Sequential(
            nn.Linear(d_model, width), nn.ReLU(), nn.Linear(width, num_experts)
        )

    @property
    def weights(self) -> RouterWeights:
        """The weights as the kernels take them."""
        first, last = self.layers[0], self.layers[2]
        return RouterWeights(first.weight, first.bias, last.weight, last.bias, self.kind)

    def logits(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., n]
        return self.layers(z)

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., n]
        logits = self.logits(z)
        return logits.abs() if self.kind == "regression" else logits.sigmoid()


def norm_regression_loss(router: Router, z: Tensor, norms: Tensor) -> Tensor:
    """Mean squared error between the scores for z [..., d_model] and the norms [..., n]."""
    return mse_loss(router(z), norms)
