"""Which experts a token runs, given its routers' scores (paper section 3.4, equation 4).

Where scores are no numbers (NaN), experts run, so that a broken token's output is NaN too. So the
rules say what is left out: all comparisons with NaN are false.
"""

from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.errors import ModelError
from d2dmoe.lookup import look_up, resolve
from d2dmoe.selection_rules import RULES


def dynamic_k(scores: Tensor, tau: float | Tensor) -> Tensor:
    """Every expert whose score is at least τ times the token's largest.

    τ = 0 runs all of them, τ = 1 only the best. A token whose scores are all 0 is predicted to get
    nothing from any expert, and runs none unless τ = 0.

    Args:
        scores: non-negative, [..., num_experts].
        tau: in [0, 1].

    Returns:
        A boolean mask [..., num_experts].
    """
    largest = scores.amax(-1, keepdim=True)
    return ~(scores < tau * largest) & (~(largest <= 0) | (tau == 0))


def top_k(scores: Tensor, k: int) -> Tensor:
    """The k experts of the highest scores, the same number for every token: static selection.

    Ties go to one of the equals, so that exactly k run. [..., num_experts] -> boolean mask.
    """
    best = scores.topk(int(k), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


def coverage(scores: Tensor, p: float) -> Tensor:
    """The fewest experts whose scores sum to at least a share p of the token's total.

    An expert runs as long as those ranked before it fall short of the share. Experts of score 0 add
    nothing and never run, not even at p = 1. [..., num_experts] -> boolean mask.
    """
    if p >= 1:  # exact, where rounded sums could leave out the smallest scores
        return ~(scores <= 0)
    ranked, order = scores.double().sort(dim=-1, descending=True)
    reached = ranked.cumsum(-1)
    needed = ~(reached - ranked >= p * reached[..., -1:]) & ~(ranked <= 0)
    return torch.zeros_like(needed).scatter_(-1, order, needed)


def by_sensitivity(scores: Tensor, tolerance: float, sensitivity: float = 1.0) -> Tensor:
    """All but the smallest experts, whose summed share of the token's scores is below √(T / s).

    AdapMoE's gating (arXiv 2408.10284, section 4.1), which drops the second of two experts, for any
    number of them. The best always runs, if it scores at all.

    Args:
        scores: non-negative, [..., num_experts].
        tolerance: T in [0, 1]; 0 runs every expert.
        sensitivity: s of the layer, relative to the most sensitive one's; not negative.

    Returns:
        A boolean mask [..., num_experts].
    """
    if tolerance == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    share = (tolerance / max(tolerance, sensitivity)) ** 0.5  # at most 1
    ranked, order = scores.double().sort(dim=-1)
    reached = ranked.cumsum(-1)
    dropped = (reached < share * reached[..., -1:]) | (ranked <= 0)
    return torch.zeros_like(dropped).scatter_(-1, order, ~dropped)


def check_value(rule: str, value: Any, num_experts: int) -> float:
    """An operating point of a rule as it is stored: a share in [0, 1], or of rules that count
    experts a whole number from 1 on.

    Raises:
        UnknownName: there is no such rule.
        ModelError: the value is none of its operating points.
    """
    record = look_up(RULES, rule, "selection rule")
    number = value.item() if hasattr(value, "item") and not getattr(value, "ndim", 0) else value
    real = isinstance(number, int | float) and not isinstance(number, bool)
    if record.whole:
        if real and number in range(1, num_experts + 1):
            return int(number)
        allowed = f"a whole number from 1 to {num_experts}"
    else:
        if real and 0 <= number <= 1:
            return float(number)
        allowed = "a number in [0, 1]"
    raise ModelError(f"{record.symbol} = {value!r} of the rule {rule}: must be {allowed}")


class Selection(nn.Module):
    """A rule at an operating point; a module, so that hooks can watch what it selects."""

    def __init__(self, rule: str = "dynamic_k", value: float = 0.0, sensitivity: float = 1.0):
        """`rule` is a key of `RULES`, `value` one of its operating points; `sensitivity` is the
        layer's, for rules that ask for it: see `sensitivity`.

        Raises:
            UnknownName: there is no such rule; also where `rule` is set later.
        """
        super().__init__()
        self.rule, self.sensitivity = rule, sensitivity
        self.value: Any = value  # a number; a scalar tensor while `stages.tune` draws it

    @property
    def rule(self) -> str:
        """The rule's name, a key of `RULES`.

        Raises:
            UnknownName: where it is set, there is no such rule.
        """
        return self._rule.name

    @rule.setter
    def rule(self, name: str) -> None:
        self._rule = look_up(RULES, name, "selection rule")
        self._select = resolve(self._rule.select)  # now: torch.compile follows no import

    @property
    def fused(self) -> bool:
        """Whether the GPU kernels select by the rule themselves."""
        return self._rule.fused

    @property
    def runs_all(self) -> bool:
        """Whether every expert is known to run, whatever the scores; of a value that only the
        device knows it is not."""
        return not isinstance(self.value, Tensor) and self.value == self._rule.all_at

    def forward(self, scores: Tensor) -> Tensor:  # [..., num_experts] -> bool [..., num_experts]
        if self._rule.sensitive:
            return self._select(scores, self.value, self.sensitivity)
        return self._select(scores, self.value)

    def extra_repr(self) -> str:
        return f"{self.rule}, {self.value}"
