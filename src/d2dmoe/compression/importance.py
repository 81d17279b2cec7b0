"""Importance of attention heads and hidden neurons, the criterion of structured pruning.

It is the expected sensitivity of the loss to a mask ξ on what a unit puts out, E_x |∂L(x)/∂ξ| at
ξ = 1 (heads: Michel et al. 2019, arXiv 1905.10650; neurons: Molchanov et al. 2017, arXiv
1611.06440). With h what the next map reads of the unit, ∂L/∂ξ = Σ h ∂L/∂h over tokens and columns,
so no mask has to be put in. Padding changes no loss, so it does not count.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from d2dmoe.data.splits import Batch
from d2dmoe.inputs import logits_of
from d2dmoe.processes import spread
from d2dmoe.surgery import watch
from d2dmoe.training import cross_entropy_loss


def importance(
    model: nn.Module, widths: Mapping[str, int], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """E_x |∂L(x)/∂ξ| of the units that linear maps read.

    Args:
        model: in evaluation mode, its weights with gradients.
        widths: by the maps' names, the input columns that make up a unit (`prune.unit_widths`).
        batches: samples, each with a loss of its own: the mean over its targets.

    Returns:
        float64 [units] by the maps' names.
    """
    maps = {name: model.get_submodule(name) for name in widths}

    def sensitivity(batch: Batch) -> tuple[int, dict[str, Tensor]]:
        inputs, targets = batch
        # A sum of the samples' losses: each one's share of it has the sample's own gradient.
        loss = cross_entropy_loss(logits_of(model, inputs), targets) * len(targets)
        gradients = torch.autograd.grad(loss, list(seen.values()))
        sums = {}
        for (name, h), gradient in zip(seen.items(), gradients, strict=True):
            columns = (h * gradient).detach().flatten(1, -2).sum(1)  # [batch, columns]
            units = columns.unflatten(-1, (-1, widths[name])).sum(-1)  # [batch, units]
            sums[name] = units.abs().double().sum(0).cpu()
        return len(targets), sums

    with watch(maps, lambda _map, h, _output: h) as seen:
        counts, sums = zip(*spread(batches, sensitivity), strict=True)
    return {name: sum(part[name] for part in sums) / sum(counts) for name in widths}


def most_important(scores: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the `count` highest scores [units]; of equal ones the first stay."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
