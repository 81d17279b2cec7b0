"""MoEfication (Zhang et al. 2022, arXiv 2110.01786): routers trained as classifiers, static top-k.

Its base is fine-tuned with ReLU and no penalty, and its split is the same balanced clustering.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from d2dmoe.moe import MoE
from d2dmoe.router import Router


def classification_targets(hidden: Tensor) -> Tensor:
    """Each expert's summed activations relative to the token's largest: [..., n, e] -> [..., n].

    In [0, 1]; all 0 for a token that activates nothing.
    """
    summed = hidden.abs().sum(-1)
    return summed / summed.amax(-1, keepdim=True).clamp(min=1e-12)


def classification_loss(router: Router, moe: MoE, z: Tensor) -> Tensor:
    """Binary cross-entropy between the router's logits and `classification_targets`.

    Args:
        router: of the layer; gradients reach it alone.
        moe: the layer.
        z: its inputs, [tokens, d_model].

    Returns:
        A scalar, the mean over tokens and experts.
    """
    with torch.no_grad():
        targets = classification_targets(moe.hidden(z))
    return binary_cross_entropy_with_logits(router.logits(z), targets)
