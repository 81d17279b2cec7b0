"""What the dense model is and where its weights come from, for each architecture."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.config.named import OneOf, Tagged
from d2dmoe.config.strict import Strict
from d2dmoe.models import ARCHITECTURES

ActivationName = Annotated[str, OneOf(ACTIVATIONS, "activation")]


class TransformerConfig(Strict):
    """What all architectures share."""

    forms: ClassVar[dict[str, int]]  # kinds of `weights`: how many colons follow the kind at least
    forms_text: ClassVar[str]

    architecture: str
    weights: str = Field("scratch", description="Initial weights: scratch, or pretrained ones")
    layers: int = Field(gt=0, description="Transformer blocks")
    d_model: int = Field(gt=0, description="Width of a token")
    heads: int = Field(gt=0, description="Attention heads")
    d_ff: int = Field(gt=0, description="Hidden neurons of an FFN")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate in every block")
    activation: ActivationName | None = Field(
        None, description="Of the FFNs of the dense model; null: the architecture's own"
    )

    @field_validator("weights")
    @classmethod
    def _known_weights(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        if value != "scratch" and (not rest or rest.count(":") < cls.forms.get(kind, 99)):
            raise ValueError(f"must be {cls.forms_text}")
        return value

    @property
    def data_kind(self) -> str:
        """Of the data that the architecture takes."""
        return ARCHITECTURES[self.architecture].data

    @property
    def name(self) -> str:
        """The tables' model column."""
        return f"{self.architecture}-{self.layers}x{self.d_model}"


class DividedHeads(TransformerConfig):
    """Architectures whose heads share the width of a token."""

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.d_model % self.heads:
            raise ValueError(f"heads = {self.heads} must divide d_model = {self.d_model}")
        return self


class ViTConfig(DividedHeads):
    """torchvision's VisionTransformer."""

    forms = {"torchvision": 1, "path": 0}
    forms_text = "'scratch', 'torchvision:MODEL:WEIGHTS' or 'path:FILE.safetensors'"

    architecture: Literal["vit"]
    patch_size: int = Field(gt=0, description="Side of a patch, pixels")
    stem: list[int] = Field(
        [],
        description="Output channels of the stride-2 3x3 convolutions that replace plain patches; "
        "they must reach the same grid. Empty: plain patches",
    )


class LanguageConfig(TransformerConfig):
    """Architectures of transformers, which read tokens."""

    forms = {"hub": 0, "path": 0}
    forms_text = "'scratch', 'hub:NAME' or 'hub:NAME@REVISION' (Hugging Face), or 'path:FOLDER'"

    positions: int = Field(gt=0, description="Longest sequence, tokens")


class BertConfig(LanguageConfig, DividedHeads):
    """transformers' BertForSequenceClassification."""

    architecture: Literal["bert"]


class GPT2Config(LanguageConfig, DividedHeads):
    """transformers' GPT2LMHeadModel."""

    architecture: Literal["gpt2"]


class GemmaConfig(LanguageConfig):
    """transformers' GemmaForCausalLM: gated FFNs, rotary positions, grouped queries."""

    architecture: Literal["gemma"]
    head_dim: int = Field(gt=0, description="Width of an attention head")
    key_value_heads: int = Field(gt=0, description="Heads of keys and values; must divide heads")

    @model_validator(mode="after")
    def _groups_divide(self):
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"key_value_heads = {self.key_value_heads} must divide heads = {self.heads}"
            )
        return self


ModelConfig = Annotated[TransformerConfig, Tagged("architecture", ARCHITECTURES)]
