"""What stands in the place of a sublayer, an attention or an FFN, that is left out of a block.

A block adds what a sublayer gives to what the sublayer got, and normalises before or after. Without
the sublayer its input goes on as it is, and the norm goes with it. Each stand-in is made of the
module whose place it takes.
"""

from typing import Any

import torch
from torch import Tensor, nn


class StandIn(nn.Module):
    """Takes the place of a module, and most often needs nothing of it."""

    def __init__(self, _module: nn.Module):
        super().__init__()


class Nothing(StandIn):
    """For an FFN before the addition: adds 0."""

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model], both
        return torch.zeros_like(z)


class NoAttention(StandIn):
    """For an attention before the addition: adds 0, and has no weights to show.

    A cache, which counts the tokens so far by what its first layer keeps, gets keys and values of
    width 0.
    """

    def __init__(self, attention: nn.Module):
        super().__init__(attention)
        self.layer_idx: Any = getattr(attention, "layer_idx", None)

    def forward(
        self, hidden_states: Tensor, *_args: Any, past_key_values: Any = None, **_kwargs: Any
    ) -> tuple[Tensor, None]:  # [batch, tokens, d_model], both
        if past_key_values is not None:
            batch, tokens, _ = hidden_states.shape
            empty = hidden_states.new_empty(batch, 1, tokens, 0)
            past_key_values.update(empty, empty, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class InputOfAttention(StandIn):
    """For an attention with the addition and the norm after it: gives its input."""

    def forward(self, z: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
        return z, None


class InputOfFFN(StandIn):
    """For the addition and the norm after an FFN: gives the FFN's input."""

    def forward(self, out: Tensor, residual: Tensor) -> Tensor:  # all [..., d_model]
        return residual
