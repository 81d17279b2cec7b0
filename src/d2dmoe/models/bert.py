"""transformers' BertForSequenceClassification.

Its FFN lies in two modules: `intermediate` (W1, GELU) and the first map of `output`, which also
adds the residual and normalises. Here `intermediate` becomes the whole FFN, `output` the rest.
"""

from typing import Any

from torch import Tensor, nn
from transformers import BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertAttention, BertLayer, BertSelfAttention

from d2dmoe.attention import mark_projections
from d2dmoe.config.model import BertConfig
from d2dmoe.ffn import FFN
from d2dmoe.models import pretrained
from d2dmoe.stand_ins import InputOfAttention, InputOfFFN
from d2dmoe.surgery import find, swap

BLOCK = BertLayer  # gives [batch, tokens, d_model], the first token is what classifies
HEADS = (BertSelfAttention, "num_attention_heads")  # what knows their number, and its name there
HEAD = "classifier"
SUBLAYERS = {
    "attention": {"attention": InputOfAttention},
    "ffn": {"intermediate": nn.Identity, "output": InputOfFFN},
}
PROJECTIONS = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}


class AddAndNorm(nn.Module):
    """The end of a block: LayerNorm(FFN output + FFN input)."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.LayerNorm = norm

    def forward(self, out: Tensor, residual: Tensor) -> Tensor:  # both [batch, tokens, d_model]
        return self.LayerNorm(out + residual)


def create(cfg: BertConfig, about: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """The model's options for `build`, and the model; see `models.build.create_model`."""
    others = {
        "id2label": dict(enumerate(about["classes"])),
        "label2id": {name: i for i, name in enumerate(about["classes"])},
        "pad_token_id": about["pad_id"],
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.dropout,
    }
    options, model = pretrained.create(cfg, about, BertForSequenceClassification, others)
    return options, _with_ffns(model)


def build(options: dict[str, Any]) -> nn.Module:
    """The modules with fresh weights; takes `input_ids` and `attention_mask` [batch, tokens]."""
    return _with_ffns(pretrained.build(BertForSequenceClassification, options))


def separate_projections(model: nn.Module) -> nn.Module:
    """See `models.build.separate_projections`; they are separate here."""
    for attention in find(model, BertAttention).values():
        mark_projections(attention, PROJECTIONS)
    return model


def _with_ffns(model: BertForSequenceClassification) -> nn.Module:
    activation = pretrained.activation_name(model.config.hidden_act)
    for layer in find(model, BertLayer).values():
        up, output = layer.intermediate.dense, layer.output
        ffn = FFN(up, output.dense, activation, dropout=output.dropout.p)
        swap(layer, "intermediate", ffn)
        swap(layer, "output", AddAndNorm(output.LayerNorm))
    return model
