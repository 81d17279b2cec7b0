"""Dyn-Adapter's parts: an adapter in each block of a frozen model, and heads after some of them.

An adapter, a bottleneck of r neurons (Houlsby et al. 2019, arXiv 1902.00751), corrects what a
block's FFN gives: y + W_up GELU(W_down y). At first W_up is 0 and nothing is changed.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.methods.early_exits.leaving import Exits, exit_blocks
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find, replace


class Adapter(nn.Module):
    """y -> y + up(GELU(down(y))), whose `up` is 0 at first."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(d_model, width), nn.Linear(width, d_model)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:  # [..., d_model] -> [..., d_model]
        return y + self.up(nn.functional.gelu(self.down(y)))


class AdaptedFFN(FFN):
    """An FFN whose output an adapter corrects; the names of the FFN's own weights stay."""

    def __init__(self, ffn: FFN, width: int):
        """The FFN's own maps and options; `width` is that of the adapter."""
        rates = {"dropout": ffn.dropout.p, "hidden_dropout": ffn.hidden_dropout.p}
        super().__init__(ffn.up, ffn.down, ffn.activation_name, ffn.gate, **rates, role=ffn.role)
        self.adapter = Adapter(ffn.d_out, width)

    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d_out]
        return self.adapter(super().forward(z))


class EarlyHeads(Exits):
    """A head after each exit's block: LayerNorm → (Linear → GELU →) Linear of the class token."""

    def __init__(self, exits: int, every: int, d_model: int, num_classes: int, width: int | None):
        """`every` so many blocks comes an exit; `width` is that of a head's hidden layer; None:
        there is none."""
        super().__init__()
        self.every = every
        heads = (_head(d_model, num_classes, width) for _ in range(exits))
        self.heads = nn.ModuleList(heads)

    def answers(self, states: Iterable[Tensor]) -> Tensor:
        """The heads' logits; see `Exits.answers`."""
        return torch.stack([h(state) for h, state in zip(self.heads, states, strict=False)])


def _head(d_model: int, num_classes: int, width: int | None) -> nn.Sequential:
    hidden = [nn.Linear(d_model, width), nn.GELU()] if width else []
    return nn.Sequential(nn.LayerNorm(d_model), *hidden, nn.Linear(width or d_model, num_classes))


def add_adapters(
    model: nn.Module, spec: ModelSpec, width: int, every: int, head_width: int | None
) -> nn.Module:
    """Give every FFN of a model, in place, a fresh adapter, and the model fresh heads as
    `model.exits`. Its forward gives what it gave before, by its own classifier.

    Args:
        model: dense.
        spec: of the model.
        width: r, the neurons of an adapter.
        every: blocks from one exit to the next.
        head_width: hidden neurons of a head; None: it is one linear map.

    Raises:
        CheckpointError: the architecture has no class token.
        ConfigError: the model has too few blocks for an exit.
    """
    count = len(exit_blocks(model, spec, every))
    d_model = next(iter(find(model, FFN).values())).d_model
    replace(model, FFN, lambda ffn, _index: AdaptedFFN(ffn, width))
    model.exits = EarlyHeads(count, every, d_model, len(spec.data["classes"]), head_width)
    return model
