"""A selection rule: the experts whose scores are high among their token's."""

from torch import Tensor


def above_mean(scores: Tensor, value: float) -> Tensor:
    """The experts whose score is at least `value` times their token's mean score; 0: all.
    [..., num_experts] -> boolean mask."""
    return scores >= value * scores.mean(-1, keepdim=True)
