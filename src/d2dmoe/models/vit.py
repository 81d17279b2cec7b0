"""torchvision's VisionTransformer: classifies images; its FFNs are the blocks' `mlp`."""

from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import (
    ConvStemConfig,
    EncoderBlock,
    MLPBlock,
    VisionTransformer,
)

from d2dmoe.attention import SelfAttention
from d2dmoe.config.model import ViTConfig
from d2dmoe.errors import CheckpointError
from d2dmoe.ffn import FFN
from d2dmoe.io.tensors import load_published
from d2dmoe.stand_ins import NoAttention, Nothing
from d2dmoe.surgery import replace

BLOCK = EncoderBlock  # gives [batch, tokens, d_model], the class token first
HEADS = (SelfAttention, "heads")  # what knows their number, and its name there
HEAD = "heads.head"  # the classifier
SUBLAYERS = {
    "attention": {"ln_1": nn.Identity, "self_attention": NoAttention},
    "ffn": {"ln_2": nn.Identity, "mlp": Nothing},
}


def create(cfg: ViTConfig, about: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """The model's options for `build`, and the model with fresh or pretrained weights.

    Raises:
        CheckpointError: the weights cannot be had, or are not those of this model.
    """
    options = cfg.model_dump(exclude={"weights", "architecture", "activation"})
    options |= {"image_size": about["image_size"], "num_classes": len(about["classes"])}
    model = build(options)
    if cfg.weights != "scratch":
        _load_pretrained(model, cfg.weights, options["num_classes"])
    return options, model


def build(options: dict[str, Any]) -> nn.Module:
    """A model with fresh weights; takes images `x` [batch, 3, image_size, image_size]."""
    model = VisionTransformer(
        image_size=options["image_size"],
        patch_size=options["patch_size"],
        num_layers=options["layers"],
        num_heads=options["heads"],
        hidden_dim=options["d_model"],
        mlp_dim=options["d_ff"],
        dropout=options["dropout"],
        num_classes=options["num_classes"],
        conv_stem_configs=[ConvStemConfig(c, kernel_size=3, stride=2) for c in options["stem"]]
        or None,
    )
    return replace(model, MLPBlock, _to_ffn)


def separate_projections(model: nn.Module) -> nn.Module:
    """See `models.build.separate_projections`; the attentions hold them fused."""
    return replace(model, nn.MultiheadAttention, lambda fused, _: SelfAttention(fused))


def _load_pretrained(model: nn.Module, weights: str, num_classes: int) -> None:
    """Load weights in place; a classifier of another number of classes keeps its fresh ones."""
    kind, _, name = weights.partition(":")
    state = _torchvision_state(name) if kind == "torchvision" else _local_state(Path(name))
    state = {_ffn_key(key): value for key, value in state.items()}
    head = [f"{HEAD}.weight", f"{HEAD}.bias"]
    if head[0] in state and len(state[head[0]]) != num_classes:
        state = {key: value for key, value in state.items() if key not in head}
    expected = {key: value.shape for key, value in model.state_dict().items()}
    missing = set(expected) - set(state) - set(head)
    wrong = sorted(missing | {k for k, v in state.items() if expected.get(k) != v.shape})
    if wrong:
        raise CheckpointError(
            f"the weights {weights} do not fit the configured model: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, first {wrong[:3]}. Give the model section the "
            "layers, d_model, heads, d_ff, patch_size of the checkpoint."
        )
    model.load_state_dict(state, strict=False)


def _to_ffn(block: MLPBlock, _: int) -> FFN:
    rate = block[2].p
    return FFN(block[0], block[3], "gelu", dropout=rate, hidden_dropout=rate)


def _ffn_key(key: str) -> str:
    """torchvision's names of an FFN's tensors (mlp.0, mlp.3; before 0.12 linear_1) to ours."""
    for old, new in {
        ".mlp.0.": ".mlp.up.",
        ".mlp.3.": ".mlp.down.",
        ".mlp.linear_1.": ".mlp.up.",
        ".mlp.linear_2.": ".mlp.down.",
    }.items():
        key = key.replace(old, new)
    return key


def _torchvision_state(name: str) -> dict:
    architecture, _, weights = name.partition(":")
    try:
        return get_model_weights(architecture)[weights].get_state_dict(check_hash=True)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"torchvision knows no weights {name}: {error}") from error
    except (OSError, RuntimeError) as error:  # no network, or a wrong hash
        raise CheckpointError(
            f"cannot download torchvision's {name}: {error}. Without a network, save its state "
            "dict as safetensors elsewhere and name it by weights: path:FILE.safetensors."
        ) from error


def _local_state(path: Path) -> dict:
    return load_published(path, "Give model.weights the path of a safetensors file.")
