"""How far a mean over samples is to be trusted: bootstrap intervals.

All that is measured is a ratio of two sums over samples: a loss (of losses and targets), a share of
the dense cost, a loss relative to another. Both sums are drawn from the same samples, so what these
have in common cancels.

Samples that follow each other may be of one document, and alike. So runs of samples are drawn too,
and the wider interval counts.
"""

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
RUNS = 20  # of samples in their order
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
        None of fewer than two samples of which there is anything.
    """
    pairs = torch.stack([above, below], dim=1).double().cpu()
    pairs = pairs[pairs.any(dim=1)]  # a text of one token has nothing that is to be predicted
    count = len(pairs)
    if count < 2:
        return None
    found = [_drawn(pairs)]
    if count >= 2 * RUNS:
        found.append(_drawn(torch.stack([run.sum(0) for run in pairs.tensor_split(RUNS)])))
    low, high = min(interval[0] for interval in found), max(interval[1] for interval in found)
    if not again:
        return low, high
    middle = ratio(pairs[:, 0], pairs[:, 1])
    return middle - 2**0.5 * (middle - low), middle + 2**0.5 * (high - middle)


def _drawn(pairs: Tensor) -> Interval:
    """Of the ratio of sums of pairs, [units, 2], when as many units are drawn with replacement."""
    count, generator = len(pairs), torch.Generator().manual_seed(0)
    rows = max(1, min(RESAMPLES, CHUNK // count))  # at once
    chosen = (
        torch.randint(count, (rows, count), generator=generator, device="cpu")
        for _ in range(-(-RESAMPLES // rows))
    )
    sums = torch.cat([pairs[places].sum(1) for places in chosen])
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu")
    low, high = torch.quantile(sums[:, 0] / sums[:, 1], ends).tolist()
    return low, high
