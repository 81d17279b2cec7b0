"""transformers' GemmaForCausalLM; its FFNs, the layers' `mlp`, are gated and have no biases."""

from typing import Any

from torch import nn
from transformers import GemmaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaAttention, GemmaDecoderLayer, GemmaMLP

from d2dmoe.attention import mark_projections
from d2dmoe.config.model import GemmaConfig
from d2dmoe.ffn import FFN
from d2dmoe.models import pretrained
from d2dmoe.stand_ins import NoAttention, Nothing
from d2dmoe.surgery import find, replace

BLOCK = GemmaDecoderLayer
HEAD = "lm_head"
SUBLAYERS = {
    "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
    "ffn": {"post_attention_layernorm": nn.Identity, "mlp": Nothing},
}
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


def create(cfg: GemmaConfig, about: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """The model's options for `build`, and the model; see `models.build.create_model`."""
    others = {"eos_token_id": about["end_of_text_id"], "attention_dropout": cfg.dropout}
    if cfg.weights == "scratch":  # one token ends a text, begins the next and fills up
        others |= {"bos_token_id": about["end_of_text_id"], "pad_token_id": about["end_of_text_id"]}
    options, model = pretrained.create(cfg, about, GemmaForCausalLM, others)
    return options, _with_ffns(model)


def build(options: dict[str, Any]) -> nn.Module:
    """The modules with fresh weights; takes `input_ids` [batch, tokens]."""
    return _with_ffns(pretrained.build(GemmaForCausalLM, options))


def separate_projections(model: nn.Module) -> nn.Module:
    """See `models.build.separate_projections`; they are separate here, K and V narrower than Q."""
    for attention in find(model, GemmaAttention).values():
        mark_projections(attention, PROJECTIONS)
    return model


def _with_ffns(model: GemmaForCausalLM) -> nn.Module:
    activation = pretrained.activation_name(model.config.hidden_act)

    def to_ffn(mlp: GemmaMLP, _: int) -> FFN:
        return FFN(mlp.up_proj, mlp.down_proj, activation, gate=mlp.gate_proj)

    return replace(model, GemmaMLP, to_ffn)
