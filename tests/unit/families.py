"""Model families from their own libraries, with tiny sizes and random weights: the rows of the
table that `test_families.py` tests and `tools/families.py` prints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.convert import convert

torch.set_num_threads(1)  # the order of sums, and so their last bits, depends on it

Inputs = dict[str, Any]
VOCABULARY, TOKENS, PIXELS, EXPERTS = 96, 7, 32, 4
FEWER = 2  # tokens that the second text of a batch lacks

# Whatever a configuration of transformers calls its sizes.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embedding_size", "n_embd", "d_model", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "mlp_ratio"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "query_pre_attn_scalar", "patch_size"), 16),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "hidden_dim", "ffn_dim"), 256),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 256),
    **dict.fromkeys(("dff", "d_inner"), 256),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 40),
    "vocab_size": VOCABULARY,
    "image_size": PIXELS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "layer_types": None,  # as many as there are layers
}


def from_transformers(model: str, **own: Any) -> nn.Module:
    """A model of a class of transformers; `own` are options beyond the sizes, or instead."""
    made: Any = getattr(import_module("transformers"), model)
    names = made.config_class.attribute_map  # of options that have two
    known = vars(made.config_class()).keys() | names
    sizes = {n: size for n, size in SIZES.items() if n in known and names.get(n, n) not in own}
    config = made.config_class(**sizes | own)
    config.use_cache = False  # `generate` is told when to
    return made(config)


def from_timm(model: str, **options: Any) -> nn.Module:
    return import_module("timm").create_model(model, num_classes=3, **options)


def from_torchvision(model: str, **options: Any) -> nn.Module:
    return getattr(import_module("torchvision.models"), model)(num_classes=3, **options)


class Feedforward(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 8 * width), nn.GELU(), nn.Linear(8 * width, width))


class Inline(nn.Module):
    """A feed-forward block whose activation is no module: `HandWritten` calls it."""

    def __init__(self, width: int):
        super().__init__()
        self.fc, self.proj = nn.Linear(width, 8 * width), nn.Linear(8 * width, width)


class HandWritten(nn.Module):
    """A language model as a tutorial has it."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int, inline: bool):
            super().__init__()
            self.heads = heads
            self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.inline, self.ffn = inline, Inline(width) if inline else Feedforward(width)

        def forward(self, x: Tensor) -> Tensor:  # [batch, tokens, width], of the same shape
            q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
            attended = nn.functional.scaled_dot_product_attention(
                *(part.transpose(1, 2) for part in (q, k, v)), is_causal=True
            )
            x = x + self.out(attended.transpose(1, 2).flatten(-2))
            if self.inline:
                return x + self.ffn.proj(nn.functional.gelu(self.ffn.fc(self.after(x))))
            return x + self.ffn(self.after(x))

    def __init__(self, width: int = 32, heads: int = 2, layers: int = 2, inline: bool = False):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(40, width)
        self.blocks = nn.Sequential(*(self.Block(width, heads, inline) for _ in range(layers)))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:  # [batch, tokens] -> logits
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.head(self.blocks(self.words(input_ids) + self.places(places)))


def encoder(**options: Any) -> nn.Module:
    """torch's own Transformer, of two layers."""
    layer = nn.TransformerEncoderLayer(32, 2, 256, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2)


def text() -> Inputs:
    """Two texts, the second one shorter and padded on the right."""
    ids = torch.randint(3, VOCABULARY, (2, TOKENS))
    mask = torch.ones_like(ids)
    ids[1, -FEWER:], mask[1, -FEWER:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def tokens() -> Inputs:
    return {"input_ids": torch.randint(3, VOCABULARY, (2, TOKENS))}


def translation() -> Inputs:
    """Texts, and other texts that a decoder has said so far."""
    return text() | {"decoder_input_ids": torch.randint(3, VOCABULARY, (2, TOKENS - 1))}


def pixels(name: str = "pixel_values", size: int = PIXELS) -> Inputs:
    return {name: torch.randn(2, 3, size, size)}


def speech() -> Inputs:
    """Spectra of two recordings, and what has been said so far."""
    said = torch.randint(3, VOCABULARY, (2, TOKENS))
    return {"input_features": torch.randn(2, 8, 2 * TOKENS), "decoder_input_ids": said}


def wave() -> Inputs:
    return {"input_values": torch.randn(2, 400)}


def vectors() -> Inputs:
    return {"src": torch.randn(2, TOKENS, 32)}


@dataclass(frozen=True)
class Family:
    """A model of a library, and what is to be found in it."""

    name: str
    library: str  # transformers, timm, torchvision or torch
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    layers: int = 2  # how many FFNs it has
    generates: bool = False
    shown: bool = False  # what it takes; else it says so itself

    def build(self) -> nn.Module:
        """The model in eval mode; no weight of it, norms and biases included, is 0 or 1."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    def example(self) -> Inputs:
        """A batch of two samples."""
        torch.manual_seed(1)
        return self.inputs()

    def convert(self, model: nn.Module) -> nn.Module:
        """By one call, into experts of random neurons, which are assigned in no time."""
        example = self.example() if self.shown else None
        return convert(model, num_experts=EXPERTS, method="random", example=example)


def hf(name: str, model: str, inputs: Callable[[], Inputs] = text, layers: int = 2, **own: Any):
    generates = "CausalLM" in model or "ConditionalGeneration" in model or "LMHead" in model
    make = partial(from_transformers, model, **own)
    return Family(name, "transformers", make, inputs, layers, generates)


def vision(name: str, library: str, make: Callable[[], nn.Module], layers: int = 2):
    return Family(name, library, make, partial(pixels, "x"), layers)


SWIN = {"depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": PIXELS}
VIT = {"hidden_dim": 32, "mlp_dim": 256, "num_heads": 2, "num_layers": 2, "patch_size": 8}
PVT = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "strides": [4, 2]}
PVT |= {"num_attention_heads": [1, 2], "mlp_ratios": [4, 4]}
STAGES = {"depths": [1, 1], "hidden_sizes": [16, 32]}
UNGROUPED = {"intermediate_groups": 1, "output_groups": 1}
T5 = {"decoder_start_token_id": 0}
WHISPER = {"num_mel_bins": 8, "max_source_positions": TOKENS, "max_target_positions": 40}
WAVE = {"conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 4]}
WAVE |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}

FAMILIES = {
    family.name: family
    for family in (
        # Images
        vision("ViT (timm)", "timm", partial(from_timm, "vit_tiny_patch16_224", **TIMM)),
        vision(
            "DeiT (timm)", "timm", partial(from_timm, "deit_tiny_distilled_patch16_224", **TIMM)
        ),
        vision("BEiT (timm)", "timm", partial(from_timm, "beit_base_patch16_224", **TIMM)),
        vision(
            "Swin (timm)",
            "timm",
            partial(
                from_timm, "swin_tiny_patch4_window7_224", embed_dim=16, img_size=PIXELS, **SWIN
            ),
        ),
        vision(
            "ConvNeXt (timm), 1 × 1 convolutions",
            "timm",
            partial(
                from_timm, "convnext_atto", depths=(1, 1, 0, 0), dims=[16, 32] * 2, conv_mlp=True
            ),
        ),
        vision(
            "ViT (torchvision)",
            "torchvision",
            partial(from_torchvision, "VisionTransformer", image_size=PIXELS, **VIT),
        ),
        vision(
            "Swin (torchvision)",
            "torchvision",
            partial(
                from_torchvision,
                "SwinTransformer",
                patch_size=[4, 4],
                embed_dim=16,
                depths=[1, 1],
                num_heads=[1, 2],
                window_size=[4, 4],
            ),
        ),
        hf("ViT", "ViTForImageClassification", pixels),
        hf("DeiT", "DeiTForImageClassification", pixels),
        hf("BEiT", "BeitForImageClassification", pixels),
        hf("DINOv2", "Dinov2ForImageClassification", pixels),
        hf("DINOv2, SwiGLU", "Dinov2ForImageClassification", pixels, use_swiglu_ffn=True),
        hf("Swin", "SwinForImageClassification", pixels, embed_dim=16, patch_size=4, **SWIN),
        hf("CLIP, images", "CLIPVisionModel", pixels),
        hf("SigLIP, images", "SiglipVisionModel", pixels, layers=3),
        hf("PVT", "PvtForImageClassification", pixels, sequence_reduction_ratios=[2, 1], **PVT),
        hf(
            "ConvNeXt",
            "ConvNextForImageClassification",
            pixels,
            num_stages=2,
            patch_size=4,
            **STAGES,
        ),
        hf(
            "PoolFormer",
            "PoolFormerForImageClassification",
            pixels,
            patch_sizes=[7, 3],
            padding=[2, 1],
            mlp_ratio=4.0,
            strides=[4, 2],
            num_encoder_blocks=2,
            **STAGES,
        ),
        # Texts, encoded
        hf("BERT", "BertForSequenceClassification"),
        hf("RoBERTa", "RobertaForMaskedLM"),
        hf("XLM-RoBERTa", "XLMRobertaForSequenceClassification"),
        hf("DistilBERT", "DistilBertForSequenceClassification"),
        hf("ALBERT", "AlbertForMaskedLM", layers=1),
        hf("ELECTRA", "ElectraForSequenceClassification"),
        hf("DeBERTa-v2", "DebertaV2ForSequenceClassification", relative_attention=True),
        hf("MPNet", "MPNetForMaskedLM"),
        hf("ModernBERT", "ModernBertForMaskedLM", cls_token_id=1, sep_token_id=2),
        hf("XLNet", "XLNetForSequenceClassification"),
        hf("SqueezeBERT, ungrouped", "SqueezeBertForSequenceClassification", **UNGROUPED),
        hf("CLIP, texts", "CLIPTextModel"),
        # Texts, generated
        hf("GPT-2", "GPT2LMHeadModel"),
        hf("GPT-Neo", "GPTNeoForCausalLM", attention_types=[[["global", "local"], 1]]),
        hf("GPT-NeoX", "GPTNeoXForCausalLM"),
        hf("GPT-J", "GPTJForCausalLM", rotary_dim=8),
        hf("GPTBigCode", "GPTBigCodeForCausalLM"),
        hf("CTRL", "CTRLLMHeadModel"),
        hf("OPT", "OPTForCausalLM", word_embed_proj_dim=32),
        hf("BLOOM", "BloomForCausalLM"),
        hf("Falcon", "FalconForCausalLM"),
        hf("MPT", "MptForCausalLM"),
        hf("Llama", "LlamaForCausalLM"),
        hf("Mistral", "MistralForCausalLM"),
        hf("Qwen 2", "Qwen2ForCausalLM"),
        hf("Qwen 3", "Qwen3ForCausalLM"),
        hf("Gemma 2", "Gemma2ForCausalLM"),
        hf("Gemma 3", "Gemma3ForCausalLM"),
        hf("Phi", "PhiForCausalLM"),
        hf("Phi-3", "Phi3ForCausalLM"),
        hf("OLMo 2", "Olmo2ForCausalLM"),
        hf("Cohere", "CohereForCausalLM"),
        hf("Persimmon", "PersimmonForCausalLM"),
        hf("Nemotron", "NemotronForCausalLM"),
        hf("StarCoder 2", "Starcoder2ForCausalLM"),
        # Encoders with decoders
        hf("T5", "T5ForConditionalGeneration", translation, 4, **T5),
        hf(
            "Flan-T5",
            "T5ForConditionalGeneration",
            translation,
            4,
            feed_forward_proj="gated-gelu",
            **T5,
        ),
        hf("mT5", "MT5ForConditionalGeneration", translation, 4),
        hf("BART", "BartForConditionalGeneration", translation, 4),
        hf("Pegasus", "PegasusForConditionalGeneration", translation, 4),
        # Speech
        hf("Whisper", "WhisperForConditionalGeneration", speech, 4, **WHISPER),
        hf("Wav2Vec2", "Wav2Vec2ForCTC", wave, **WAVE),
        # One's own
        Family("nn.TransformerEncoder", "torch", encoder, vectors),
        Family(
            "nn.TransformerEncoder, norm first",
            "torch",
            partial(encoder, norm_first=True, activation="gelu"),
            vectors,
        ),
        Family("a GPT in 40 lines", "torch", HandWritten, tokens, shown=True),
    )
}
"""By name. Each is found by one call of `convert`."""

EXPERTS_ALREADY = {"num_local_experts": 4, "num_experts_per_tok": 2}
REFUSED = {
    family.name: (family, reason)
    for family, reason in (
        (hf("Mixtral", "MixtralForCausalLM", **EXPERTS_ALREADY), "mixture"),
        (hf("Mamba", "MambaForCausalLM", state_size=4), "no feed-forward"),
        (
            hf(
                "SegFormer",
                "SegformerForImageClassification",
                pixels,
                sr_ratios=[2, 1],
                patch_sizes=[7, 3],
                **PVT,
            ),
            "between",  # a depthwise convolution
        ),
        (hf("SqueezeBERT", "SqueezeBertForSequenceClassification"), "groups of features"),
        (
            Family(
                "a GPT in 40 lines that calls F.gelu",
                "torch",
                partial(HandWritten, inline=True),
                tokens,
                shown=True,
            ),
            "make it a module",
        ),
    )
}
"""By name, with a word that the refusal must have."""
