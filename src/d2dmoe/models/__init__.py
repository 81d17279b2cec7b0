"""The architectures: one record each, and a module that says all that differs between them.

Every model leaves `models.build` with its FFNs in the form of `ffn.FFN`, exactly equal to the
original, so that no later stage knows architectures. It stays what it was in all else, its own
class included.
"""

from dataclasses import dataclass

from d2dmoe.lookup import table_of


@dataclass(frozen=True)
class Architecture:
    """A family of Transformers. Its module has `create`, `build` and `separate_projections`, as
    `models.build` calls them; where it can be asked for, `BLOCK`, the class of its blocks,
    `HEADS`, the class of what knows the number of heads, and the number's name there, `HEAD`, the
    name of what maps the final representation to logits, and `SUBLAYERS`, what stands in the place
    of which modules of a block, by their names there, when its attention or FFN is left out."""

    name: str
    module: str
    options: str  # the model of its options in a configuration
    data: str  # the kind of data that it takes: images, texts or corpus
    activation: str | None = None  # of its FFNs where they are trained from scratch; None: unknown
    class_token: bool = False  # whether its first token classifies; its module has `BLOCK`
    prunable_heads: bool = False  # whether heads can be removed; its module has `HEADS`
    removable: bool = False  # whether sublayers can be left out; its module has `SUBLAYERS`
    halts: bool = False  # whether its tokens can halt, as A-ViT's do


ARCHITECTURES = table_of(
    [
        Architecture(
            "vit",
            module="d2dmoe.models.vit",
            options="d2dmoe.config.model:ViTConfig",
            data="images",
            activation="gelu",
            class_token=True,
            prunable_heads=True,
            halts=True,
            removable=True,
        ),
        Architecture(
            "bert",
            module="d2dmoe.models.bert",
            options="d2dmoe.config.model:BertConfig",
            data="texts",
            activation="gelu",
            class_token=True,
            prunable_heads=True,
            removable=True,
        ),
        Architecture(
            "gpt2",
            module="d2dmoe.models.gpt2",
            options="d2dmoe.config.model:GPT2Config",
            data="corpus",
            activation="gelu_tanh",
            removable=True,
        ),
        Architecture(
            "gemma",
            module="d2dmoe.models.gemma",
            options="d2dmoe.config.model:GemmaConfig",
            data="corpus",
            activation="gelu_tanh",
            removable=True,
        ),
    ]
)


def names_where(condition: str) -> str:
    """The architectures of which a condition holds, for messages."""
    return ", ".join(name for name, record in ARCHITECTURES.items() if getattr(record, condition))
