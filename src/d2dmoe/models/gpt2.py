"""transformers' GPT2LMHeadModel; its FFNs are the blocks' `mlp`, their maps stored transposed."""

from typing import Any

import torch
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

from d2dmoe.attention import FusedProjections, Projection
from d2dmoe.config.model import GPT2Config
from d2dmoe.ffn import FFN
from d2dmoe.models import pretrained
from d2dmoe.stand_ins import NoAttention, Nothing
from d2dmoe.surgery import find, replace, swap

BLOCK = GPT2Block
HEAD = "lm_head"
SUBLAYERS = {
    "attention": {"ln_1": nn.Identity, "attn": NoAttention},
    "ffn": {"ln_2": nn.Identity, "mlp": Nothing},
}


def create(cfg: GPT2Config, about: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """The model's options for `build`, and the model; see `models.build.create_model`."""
    others = {
        "bos_token_id": about["end_of_text_id"],
        "eos_token_id": about["end_of_text_id"],
        "resid_pdrop": cfg.dropout,
        "embd_pdrop": cfg.dropout,
        "attn_pdrop": cfg.dropout,
    }
    options, model = pretrained.create(cfg, about, GPT2LMHeadModel, others)
    return options, _with_ffns(model)


def build(options: dict[str, Any]) -> nn.Module:
    """The modules with fresh weights; takes `input_ids` [batch, tokens]."""
    return _with_ffns(pretrained.build(GPT2LMHeadModel, options))


@torch.enable_grad()  # a transposed weight that is trainable stays so
def separate_projections(model: nn.Module) -> nn.Module:
    """See `models.build.separate_projections`; the attentions hold Q, K and V fused."""
    for attention in find(model, GPT2Attention).values():
        fused, out = attention.c_attn, attention.c_proj
        swap(attention, "c_attn", FusedProjections(fused.weight.T, fused.bias))
        swap(attention, "c_proj", Projection.of("o", out.weight.T, out.bias))
    return model


def _with_ffns(model: GPT2LMHeadModel) -> nn.Module:
    activation = pretrained.activation_name(model.config.activation_function)

    def to_ffn(mlp: GPT2MLP, _: int) -> FFN:
        return FFN(_linear(mlp.c_fc), _linear(mlp.c_proj), activation, dropout=mlp.dropout.p)

    return replace(model, GPT2MLP, to_ffn)


def _linear(conv: Conv1D) -> nn.Linear:
    weight = nn.Parameter(conv.weight.detach().T.contiguous(), conv.weight.requires_grad)
    return pretrained.linear(weight, conv.bias)
