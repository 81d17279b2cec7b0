"""What SAM's routers are tuned by beside their own loss: balance and alignment.

Both are of probabilities, a router's scores as shares of their sum.
"""

import torch
from torch import Tensor

from d2dmoe.methods.sam.grouping import GroupedSelection
from d2dmoe.pooling import pooled
from d2dmoe.router import SMALLEST_SUM
from d2dmoe.selection import top_k


def balance_loss(selection: GroupedSelection, p: Tensor) -> Tensor:
    """G · Σ_g f_g P_g, the Switch Transformer's loss of groups: f_g is the share of the tokens that
    go to group g, P_g its mean probability. 1 where all are alike, G at most.

    Args:
        selection: of the layer.
        p: probabilities of the experts, [tokens, n].
    """
    sums = selection.sums(p)  # [tokens, G]
    groups = sums.shape[-1]
    shares = torch.bincount(sums.argmax(-1), minlength=groups).to(p) / len(p)
    return groups * (pooled(shares, len(p)) * pooled(sums.mean(0), len(p))).sum()


def alignment_loss(selection: GroupedSelection, p: Tensor, mask: Tensor) -> Tensor:
    """Of the probability of a token's best experts in all groups, as many as it runs, the share
    that lies outside of its group, the mean over tokens. 0 where the group has the best.

    Args:
        selection: of the layer, at a rule that runs equally many for every token.
        p: probabilities of the experts, [tokens, n].
        mask: what was selected, boolean [tokens, n].
    """
    best = top_k(p, int(mask[0].sum()))
    outside = best & ~selection.spread(selection.touched(mask))
    lost = (p * outside).sum(-1) / (p * best).sum(-1).clamp(min=SMALLEST_SUM)
    return pooled(lost.mean(), len(p))
