"""What the dense model is and where its weights come from, for each architecture."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.config.named import OneOf, Tagged
from d2dmoe.config.strict import COMPLETED, Strict
from d2dmoe.errors import CheckpointError
from d2dmoe.models import ARCHITECTURES

ActivationName = Annotated[str, OneOf(ACTIVATIONS, "activation")]
BLOCK = re.compile(r"(?:layers?|h|encoder_layer)[._](\d+)\.")  # numbers a block in tensors' names
STEM = re.compile(r"conv_proj\.conv_bn_relu_(\d+)\.0\.weight")  # convolutions before the patches
VIT_SIZES = ("patch_size", "layers", "d_model", "heads", "d_ff")
VITS = {  # torchvision's models
    "vit_b_16": (16, 12, 768, 12, 3072),
    "vit_b_32": (32, 12, 768, 12, 3072),
    "vit_l_16": (16, 24, 1024, 16, 4096),
    "vit_l_32": (32, 24, 1024, 16, 4096),
    "vit_h_14": (14, 32, 1280, 16, 5120),
}
VIT_SIDES = {  # of images in pixels, by model and weights, where they are not 224
    "vit_b_16:IMAGENET1K_SWAG_E2E_V1": 384,
    "vit_l_16:IMAGENET1K_SWAG_E2E_V1": 512,
    "vit_h_14:IMAGENET1K_SWAG_E2E_V1": 518,
    "vit_h_14:DEFAULT": 518,
}
Size = Annotated[int, COMPLETED]


class TransformerConfig(Strict):
    """What all architectures share."""

    forms: ClassVar[dict[str, int]]  # kinds of `weights`: how many colons follow the kind at least
    forms_text: ClassVar[str]
    config_keys: ClassVar[dict[str, str]] = {}  # options: their names in a checkpoint's config.json
    tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {}  # options: tensors with that size, axis

    architecture: Annotated[str, COMPLETED]
    weights: str = Field(
        "scratch",
        description="Initial weights: scratch, or pretrained ones, which say the architecture and "
        "the sizes",
    )
    layers: Size = Field(gt=0, description="Transformer blocks")
    d_model: Size = Field(gt=0, description="Width of a token")
    heads: Size = Field(gt=0, description="Attention heads")
    d_ff: Size = Field(gt=0, description="Hidden neurons of an FFN")
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

    @classmethod
    def said_by(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a checkpoint says, by their names here: of a language model its
        config.json, of a ViT the shapes of its tensors."""
        return {}

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
    tensor_sizes = {
        "d_model": ("class_token", 2),
        "d_ff": (r".*\.mlp\.(0|linear_1)\.weight", 0),
        "patch_size": (r"conv_proj\.weight", 2),
    }

    architecture: Annotated[Literal["vit"], COMPLETED]
    patch_size: Size = Field(gt=0, description="Side of a patch, pixels")
    stem: list[Annotated[int, Field(gt=0)]] = Field(
        [],
        description="Output channels of the stride-2 3x3 convolutions that replace plain patches; "
        "they must reach the same grid. Empty: plain patches",
    )

    @classmethod
    def said_by(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Also the `image_size`. Shapes tell neither the heads, but of torchvision's own models,
        nor the size of a patch behind a stem."""
        said: dict[str, Any] = {}
        for option, (pattern, axis) in cls.tensor_sizes.items():
            found = [shape for name, shape in checkpoint.items() if re.fullmatch(pattern, name)]
            if found and len(found[0]) > axis:
                said[option] = found[0][axis]
        blocks = {match[1] for match in map(BLOCK.search, checkpoint) if match}
        stem = [(int(m[1]), checkpoint[m[0]][0]) for m in map(STEM.fullmatch, checkpoint) if m]
        said |= {"layers": len(blocks)} if blocks else {}
        said |= {"stem": [channels for _, channels in sorted(stem)]} if stem else {}
        positions = checkpoint.get("encoder.pos_embedding", [])  # [1, 1 + patches, d_model]
        if len(positions) == 3 and "patch_size" in said:
            said["image_size"] = math.isqrt(positions[1] - 1) * said["patch_size"]
        return said | _heads_of(said)

    @classmethod
    def said_by_torchvision(cls, name: str) -> dict[str, Any]:
        """Also the `image_size`, of MODEL:WEIGHTS; empty if there is no such model."""
        model = name.partition(":")[0]
        return _published(model) | {"image_size": VIT_SIDES.get(name, 224)} if model in VITS else {}


def _published(model: str) -> dict[str, int]:
    return dict(zip(VIT_SIZES, VITS[model], strict=True))


def _heads_of(said: Mapping[str, Any]) -> dict[str, int]:
    """The heads of torchvision's model of these sizes, if there is one."""
    for sizes in map(_published, VITS):
        heads = sizes.pop("heads")
        if sizes.items() <= said.items():
            return {"heads": heads}
    return {}


class LanguageConfig(TransformerConfig):
    """Architectures of transformers, which read tokens."""

    forms = {"hub": 0, "path": 0}
    forms_text = "'scratch', 'hub:NAME' or 'hub:NAME@REVISION' (Hugging Face), or 'path:FOLDER'"
    config_keys = {
        "layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "positions": "max_position_embeddings",
    }

    activation_key: ClassVar[str] = "hidden_act"  # of a checkpoint's config.json

    positions: Size = Field(gt=0, description="Longest sequence, tokens")

    @classmethod
    def said_by(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """What it leaves out has a default in transformers, and is not said."""
        named = {ours: checkpoint.get(theirs) for ours, theirs in cls.config_keys.items()}
        return {ours: value for ours, value in named.items() if value is not None}

    @property
    def sizes(self) -> dict[str, int]:
        """The options that a checkpoint must agree with, by their names in its config.json."""
        return {theirs: getattr(self, ours) for ours, theirs in self.config_keys.items()}

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Compare with a checkpoint's config.json; what it does not say has a default there.

        Raises:
            CheckpointError: it is of another architecture, has other sizes, or an activation that
                is not described here.
        """
        kind = config.get("model_type")
        if kind != self.architecture:
            described = [name for name, x in ARCHITECTURES.items() if x.data != "images"]
            raise CheckpointError(
                f"{self.weights} is a checkpoint of the architecture '{kind}', but "
                f"model.architecture is {self.architecture}. Described are {', '.join(described)}."
            )
        wrong = [
            f"{key} {config[key]} (configured: {size})"
            for key, size in self.sizes.items()
            if config.get(key) not in (size, None)
        ]
        if wrong:
            raise CheckpointError(
                f"{self.weights} does not fit the configured model: {', '.join(wrong)}. Give the "
                "model section the sizes of the checkpoint, or leave them out."
            )
        activation = config.get(self.activation_key)
        known = [alias for record in ACTIVATIONS.values() for alias in record.aliases]
        if activation is not None and activation not in known:
            raise CheckpointError(
                f"{self.weights}: the activation {activation!r} is not described; described are "
                f"{', '.join(known)} (d2dmoe/activations.py)."
            )


class BertConfig(LanguageConfig, DividedHeads):
    """transformers' BertForSequenceClassification."""

    architecture: Annotated[Literal["bert"], COMPLETED]


class GPT2Config(LanguageConfig, DividedHeads):
    """transformers' GPT2LMHeadModel."""

    config_keys = {
        "layers": "n_layer",
        "d_model": "n_embd",
        "heads": "n_head",
        "d_ff": "n_inner",
        "positions": "n_positions",
    }
    activation_key = "activation_function"

    architecture: Annotated[Literal["gpt2"], COMPLETED]

    @classmethod
    def said_by(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """The same; GPT-2's own configurations leave the width of the FFNs out."""
        return super().said_by(_with_width(checkpoint))

    def check_config(self, config: Mapping[str, Any]) -> None:
        """The same."""
        super().check_config(_with_width(config))


def _with_width(config: Mapping[str, Any]) -> Mapping[str, Any]:
    width = config.get("n_embd")
    if config.get("n_inner") is None and isinstance(width, int):
        return {**config, "n_inner": 4 * width}
    return config


class GemmaConfig(LanguageConfig):
    """transformers' GemmaForCausalLM: gated FFNs, rotary positions, grouped queries."""

    config_keys = LanguageConfig.config_keys | {
        "key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
    }

    architecture: Annotated[Literal["gemma"], COMPLETED]
    head_dim: Size = Field(gt=0, description="Width of an attention head")
    key_value_heads: Size = Field(gt=0, description="Heads of keys and values; must divide heads")

    @model_validator(mode="after")
    def _pairs_turn(self):
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even: positions turn pairs")
        return self

    @model_validator(mode="after")
    def _groups_divide(self):
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"key_value_heads = {self.key_value_heads} must divide heads = {self.heads}"
            )
        return self


ModelConfig = Annotated[TransformerConfig, Tagged("architecture", ARCHITECTURES)]
