"""ZTW, "Zero Time Waste" (Wołczyk et al. 2021, arXiv 2106.05409): early exits on a frozen model.

A head after a block classifies by the class token and by what the head before it said (cascade).
The heads so far are combined by a weighted geometric mean, whose confidence decides on leaving.

The model's own classifier is no member of an ensemble: who passes every exit gets its answer alone.
So the last operating point is the dense model exactly. The authors' code does the same.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.methods.early_exits.leaving import Exits, exit_blocks
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find


class Head(nn.Module):
    """LayerNorm → (Linear → GELU →) Linear, which also sees the previous head's logits."""

    def __init__(self, d_model: int, num_classes: int, width: int | None, first: bool):
        """`width` is that of the hidden layer; None: there is none."""
        super().__init__()
        self.state_norm = nn.LayerNorm(d_model)  # a ViT's tokens are not normalised between blocks
        self.hidden = nn.Sequential(nn.Linear(d_model, width), nn.GELU()) if width else None
        self.cascade_norm = None if first else nn.LayerNorm(num_classes)
        inputs = (width or d_model) + (0 if first else num_classes)
        self.out = nn.Linear(inputs, num_classes)

    def forward(self, state: Tensor, previous: Tensor | None) -> Tensor:
        """Logits from the class token [batch, d_model] and the previous head's logits.

        `previous` (of the first head None) and the result are [batch, classes]. As in the paper the
        logits are normalised, and no gradient reaches the previous head.
        """
        z = self.state_norm(state)
        if self.hidden is not None:
            z = self.hidden(z)
        if self.cascade_norm is not None:
            assert previous is not None  # the first head has no cascade
            z = torch.cat([z, self.cascade_norm(previous.detach())], -1)
        return self.out(z)


class Ensemble(nn.Module):
    """q ∝ b ∏_j p_j^w_j over the first heads; w > 0, and at first their geometric mean.

    Parameters: `log_weights` [heads] is log w, `bias` [classes] is log b. Vectors, so that weight
    decay leaves them alone.
    """

    def __init__(self, heads: int, num_classes: int):
        super().__init__()
        self.log_weights = nn.Parameter(torch.full((heads,), -math.log(heads)))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, log_probs: Tensor) -> Tensor:  # [heads, batch, classes] -> [batch, classes]
        """Logits of q, from the heads' log-probabilities."""
        return (self.log_weights.exp()[:, None, None] * log_probs).sum(0) + self.bias


class Cascade(Exits):
    """The heads of a model, and for each the ensemble of it and those before it."""

    def __init__(self, exits: int, every: int, d_model: int, num_classes: int, width: int | None):
        """`every` so many blocks comes an exit; `width` is that of the heads' hidden layer."""
        super().__init__()
        self.every = every
        heads = (Head(d_model, num_classes, width, first=i == 0) for i in range(exits))
        self.heads = nn.ModuleList(heads)
        self.ensembles = nn.ModuleList(Ensemble(i + 1, num_classes) for i in range(exits))

    def forward(self, states: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of the heads and of the ensembles, both [m, batch, classes].

        The gradients of the ensembles reach no head.

        Args:
            states: the class token after the blocks of the first m exits, each [batch, d_model].
        """
        logits: list[Tensor] = []
        for head, state in zip(self.heads, states, strict=False):
            logits.append(head(state, logits[-1] if logits else None))
        heads = torch.stack(logits)
        log_probs = heads.detach().float().log_softmax(-1)
        ensembles = [self.ensembles[i](log_probs[: i + 1]) for i in range(len(logits))]
        return heads, torch.stack(ensembles)

    def answers(self, states: Iterable[Tensor]) -> Tensor:
        """The ensembles' logits; see `Exits.answers`."""
        return self(states)[1]


def add_exits(model: nn.Module, spec: ModelSpec, every: int, width: int | None) -> nn.Module:
    """Give a model, in place, fresh heads as `model.exits`; its forward does not use them.

    Args:
        model: dense.
        spec: of the model.
        every: blocks from one exit to the next.
        width: hidden neurons of a head; None: it is one linear map.

    Raises:
        CheckpointError: the architecture has no class token.
        ConfigError: the model has too few blocks for an exit.
    """
    count = len(exit_blocks(model, spec, every))
    d_model = next(iter(find(model, FFN).values())).d_model
    model.exits = Cascade(count, every, d_model, len(spec.data["classes"]), width)
    return model
