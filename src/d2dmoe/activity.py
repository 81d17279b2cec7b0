"""Counts of active neurons (figure 2b): how many each token has in each FFN."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.inputs import Inputs
from d2dmoe.padding import real_tokens
from d2dmoe.sparsity import Activations, watch_activations
from d2dmoe.surgery import find


def active_neurons(layer: Activations) -> Tensor:
    """Active neurons of each token, those whose pre-activation exceeds the activation's threshold:
    [..., d_ff] -> integers [...]. ReLU's is 0; GELU is never exactly 0, and its threshold is where
    its output is 0 to single precision."""
    return (layer.pre > layer.activation.threshold).sum(-1)


def count_active(model: nn.Module, batches: Iterable[Inputs]) -> Tensor:
    """Histogram of active neurons per token, integers [layers, d_ff + 1]: entry [l, m] is the
    number of tokens, padding left out, with m active neurons in the FFN of block l."""
    ffns = {name: ffn for name, ffn in find(model, FFN).items() if ffn.role == "ffn"}
    d_ff = next(iter(ffns.values())).d_ff
    histogram = torch.zeros(len(ffns), d_ff + 1, dtype=torch.int64)
    with torch.inference_mode(), watch_activations(model) as activations:
        for inputs in batches:
            model(**inputs)
            real = real_tokens(inputs)
            for layer, name in enumerate(ffns):
                count = active_neurons(activations[name])
                count = count.flatten() if real is None else count[real]
                histogram[layer] += torch.bincount(count.cpu(), minlength=d_ff + 1)
    return histogram
