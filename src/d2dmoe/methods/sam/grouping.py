"""Experts in groups, and a selection within one group a token (SAM).

A group is what one device holds: experts whose neurons are alike, so that a token's best ones are
often together. A router's scores, as shares of their sum, are the experts' probabilities, and a
group's is the sum over its experts. Of the group of the largest, the rule of the layer selects.
"""

from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.moe import MoE, set_operating_point
from d2dmoe.selection import Selection
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find


class GroupedSelection(Selection):
    """A rule that selects among the experts of a token's group; of rules that count experts, all of
    them where it asks for more."""

    members: Tensor  # of each group, its experts: integers [groups, size]

    def __init__(self, members: Tensor):
        """Every expert is a member of one group."""
        super().__init__()
        self.register_buffer("members", members)

    @property
    def size(self) -> int:
        """Experts of a group."""
        return self.members.shape[1]

    @property
    def fused(self) -> bool:
        """No kernel knows groups."""
        return False

    @property
    def runs_all(self) -> bool:
        """Nor does any other group's expert run."""
        return len(self.members) == 1 and super().runs_all

    def sums(self, scores: Tensor) -> Tensor:
        """Of the groups' scores: [..., n] -> [..., groups]."""
        return scores[..., self.members].sum(-1)

    def touched(self, mask: Tensor) -> Tensor:
        """The groups in which experts are selected: bool [..., n] -> bool [..., groups]."""
        return mask[..., self.members].any(-1)

    def spread(self, groups: Tensor) -> Tensor:
        """The experts of groups: bool [..., groups] -> bool [..., n]."""
        owner = self.members.flatten().argsort() // self.size  # [n]
        return groups[..., owner]

    def forward(self, scores: Tensor) -> Tensor:  # [..., n] -> bool [..., n]
        members = self.members[self.sums(scores).argmax(-1)]  # [..., size]
        inside = self._select(scores.gather(-1, members), min(self.value, self.size))
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, members, inside)


def set_groups(moe: MoE, members: Tensor) -> GroupedSelection:
    """Let a layer, in place, select within groups, integers [groups, size]; returns the
    selection, at the layer's operating point."""
    layer: Any = moe
    selection = GroupedSelection(members.to(moe.up.device))
    selection.rule, selection.value = moe.operating_point
    layer.selection = selection.train(moe.training)
    return selection


def selections(model: nn.Module) -> dict[str, GroupedSelection]:
    """Those of a model by the names of their layers."""
    found: dict[str, Any] = {name: moe.selection for name, moe in find(model, MoE).items()}
    return found


def executed(share: float, size: int) -> int:
    """How many experts of a group a token runs: the nearest number to a share, 1 at least."""
    return max(1, round(share * size))


def run_share(model: nn.Module, share: float) -> None:
    """Let tokens run a share, in [0, 1], of their group's experts, by top-k."""
    found = selections(model)
    counts = {name: executed(share, selection.size) for name, selection in found.items()}
    set_operating_point(model, "top_k", counts)


def rebuild(model: nn.Module, spec: ModelSpec, groups: int) -> nn.Module:
    """Layers that select within so many groups; which experts these are is in the weights."""
    for moe in find(model, MoE).values():
        size = moe.num_experts // groups
        set_groups(moe, torch.arange(groups * size).view(groups, size))
    return model
