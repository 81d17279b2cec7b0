"""MoEfication (Zhang et al. 2022, arXiv 2110.01786): routers trained as classifiers, static top-k.

Its base is fine-tuned with ReLU and no penalty, and its split is the same balanced clustering.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from d2dmoe.router import Router


def classification_targets(hidden: Tensor) -> Tensor:
    """Each expert's summed activations relative to the token's largest: [..., n, e] -> [..., n].

    In [0, 1]; all 0 for a token that activates nothing.
    """
    summed = hidden.abs().sum(-1)
    return summed / summed.amax(-1, keepdim=True).clamp(min=1e-12)


def classification_loss(router: Router, z: Tensor, hidden: Tensor) -> Tensor:
    """Binary cross-entropy of the router's logits for z [..., d_model]; hidden is [..., n, e]."""
    return binary_cross_entropy_with_logits(router.logits(z), classification_targets(hidden))
