"""An architecture: torchvision's VisionTransformer with gated FFNs (GLU) of squared ReLUs."""

from typing import Any

from torch import nn
from torchvision.models.vision_transformer import MLPBlock, VisionTransformer
from toy_options import GatedViTConfig

from d2dmoe.attention import SelfAttention
from d2dmoe.ffn import FFN
from d2dmoe.surgery import replace


class GatedVisionTransformer(VisionTransformer):
    """Its blocks' `mlp` are gated."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        replace(self, MLPBlock, _gated)


def create(cfg: GatedViTConfig, about: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """The options for `build`, and a fresh model."""
    options = {
        "image_size": about["image_size"],
        "num_classes": len(about["classes"]),
        "patch_size": cfg.patch_size,
        "num_layers": cfg.layers,
        "num_heads": cfg.heads,
        "hidden_dim": cfg.d_model,
        "mlp_dim": cfg.d_ff,
        "dropout": cfg.dropout,
    }
    return options, build(options)


def build(options: dict[str, Any]) -> nn.Module:
    """A model with fresh weights; takes images `x` [batch, 3, image_size, image_size]."""
    return GatedVisionTransformer(**options)


def separate_projections(model: nn.Module) -> nn.Module:
    """See `models.build.separate_projections`."""
    return replace(model, nn.MultiheadAttention, lambda fused, _: SelfAttention(fused))


def _gated(block: MLPBlock, _: int) -> FFN:
    up, down, rate = block[0], block[3], block[2].p
    gate = nn.Linear(up.in_features, up.out_features)
    return FFN(up, down, "relu_squared", gate, dropout=rate, hidden_dropout=rate)
