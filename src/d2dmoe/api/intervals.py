"""How far a mean over samples is to be trusted: bootstrap intervals.

All that is measured is a ratio of two sums over samples: a loss (of losses and targets), a share of
the dense cost, a loss relative to another. Both sums are drawn from the same samples, so what these
have in common cancels.
"""

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 2**22  # numbers drawn at once

Interval = tuple[float, float]


def ratio(above: Tensor, below: Tensor) -> float:
    """Σ above / Σ below."""
    return float(above.sum() / below.sum())


def ratio_interval(above: Tensor, below: Tensor, again: bool = False) -> Interval | None:
    """95 % bootstrap interval of Σ above / Σ below over samples drawn anew; the same each time.

    Args:
        above, below: float64 [samples].
        again: the interval of what as many other samples of the same kind will give, rather than of
            their source's own value: √2 times as wide, for those samples scatter as well.

    Returns:
        None of fewer than two samples.
    """
    count = len(above)
    if count < 2:
        return None
    pairs = torch.stack([above, below], dim=1).double().cpu()
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(-(-RESAMPLES * count // CHUNK)):
        rows = max(1, min(RESAMPLES, CHUNK // count))
        chosen = torch.randint(count, (rows, count), generator=generator)
        drawn.append(pairs[chosen].sum(1))
    sums = torch.cat(drawn)
    ratios = sums[:, 0] / sums[:, 1]
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(ratios, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    if not again:
        return low, high
    middle = ratio(pairs[:, 0], pairs[:, 1])
    return middle - 2**0.5 * (middle - low), middle + 2**0.5 * (high - middle)
