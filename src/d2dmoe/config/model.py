"""What the dense model is and where its weights come from."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from d2dmoe.config.base import Strict

WEIGHTS_FORMS = "'scratch', 'torchvision:MODEL:WEIGHTS' or 'path:FILE.safetensors'"


class ModelConfig(Strict):
    """A vision Transformer with torchvision's structure."""

    architecture: Literal["vit"] = Field("vit", description="torchvision's VisionTransformer")
    weights: str = Field("scratch", description=f"Initial weights: {WEIGHTS_FORMS}")
    patch_size: int = Field(gt=0, description="Side of a patch, pixels")
    stem: list[int] = Field(
        [],
        description="Output channels of the stride-2 3x3 convolutions that replace plain patches; "
        "they must reach the same grid. Empty: plain patches",
    )
    layers: int = Field(gt=0, description="Transformer blocks")
    d_model: int = Field(gt=0, description="Width of a token")
    heads: int = Field(gt=0, description="Attention heads")
    d_ff: int = Field(gt=0, description="Hidden neurons of an FFN")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate in every block")

    @field_validator("weights")
    @classmethod
    def _known_weights(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        known = (
            value == "scratch"
            or (kind == "path" and rest)
            or (kind == "torchvision" and rest.count(":") == 1)
        )
        if not known:
            raise ValueError(f"must be {WEIGHTS_FORMS}")
        return value

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.d_model % self.heads:
            raise ValueError(f"heads = {self.heads} must divide d_model = {self.d_model}")
        return self
