"""Which experts the tokens of a benchmark run: independent of each other, or alike in groups.

Real masks lie between: neighbouring tokens often choose alike.
"""

import torch
from torch import Tensor

GROUP = 64  # tokens of a cluster
OWN = 0.1  # share of a clustered token's choices that are its own


def bernoulli(tokens: int, n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Each expert independently with probability `fraction`, at least one: bool [tokens, n]."""
    return _none_idle(torch.rand(tokens, n, generator=generator) < fraction, generator)


def clustered(tokens: int, n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Groups of `GROUP` neighbours that share most choices, at least one each: bool [tokens, n]."""
    groups = bernoulli(-(-tokens // GROUP), n, fraction, generator)
    shared = groups.repeat_interleave(GROUP, 0)[:tokens]
    own = torch.rand(tokens, n, generator=generator) < OWN
    choices = torch.where(own, bernoulli(tokens, n, fraction, generator), shared)
    return _none_idle(choices, generator)


def _none_idle(mask: Tensor, generator: torch.Generator) -> Tensor:
    """The mask, with one expert, drawn at random, for tokens that have none."""
    one = torch.randint(mask.shape[1], (len(mask), 1), generator=generator)
    idle = ~mask.any(1, keepdim=True)
    return mask | (idle & (torch.arange(mask.shape[1]) == one))


MASKS = {"bernoulli": bernoulli, "clustered": clustered}
