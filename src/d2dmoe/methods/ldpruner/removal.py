"""Blocks without some of their attentions and FFNs."""

from torch import nn

from d2dmoe.models.build import leave_out
from d2dmoe.spec import ModelSpec

ATTENTION, FFN = "attention", "ffn"  # the sublayers of a block


def rebuild(model: nn.Module, spec: ModelSpec, attention: list[int], ffn: list[int]) -> nn.Module:
    """Leave attentions and FFNs, by the indices of their blocks, out of a model, in place."""
    for sublayer, blocks in ((ATTENTION, attention), (FFN, ffn)):
        for block in blocks:
            leave_out(spec.architecture, model, block, sublayer)
    return model
