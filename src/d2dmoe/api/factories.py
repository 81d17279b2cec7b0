"""The dense models of other libraries: the library's function that builds one, and its options.

A folder that somebody wrote names a function to be called. So only functions of this table are,
and with none of the options that make them read further files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from d2dmoe.errors import CheckpointError
from d2dmoe.lookup import resolve, table_of

Options = dict[str, Any]


@dataclass(frozen=True)
class Factory:
    """How a library builds a model."""

    name: str  # "module:function"
    library: str  # the package that its models' classes come from
    options: Callable[[Any], Options | None]  # read from a model; None: cannot be read
    allows: Callable[[Options], bool]  # whether a folder may ask for a model with these options


def recipe_of(model: nn.Module) -> tuple[str, Options] | None:
    """The factory that built a model, and its options; None if they cannot be read from it."""
    library = type(model).__module__.partition(".")[0]
    for factory in FACTORIES.values():
        options = factory.options(model) if factory.library == library else None
        if options is not None:
            return factory.name, options
    return None


def build(name: str | None, options: Options) -> nn.Module:
    """A dense model by the factory that a folder names.

    Raises:
        CheckpointError: it is none of the table, or may not be called with these options.
    """
    factory = FACTORIES.get(name or "")
    if factory is None or not factory.allows(options):
        made = f"was built by {name} with {options}" if name else "names no factory"
        raise CheckpointError(
            f"The saved model {made}. What a folder names is not called, but for "
            f"{' and '.join(FACTORIES)} with harmless options. Build the dense model yourself and "
            "call from_pretrained(folder, model=…)."
        )
    return resolve(factory.name)(**options)


def _timm_options(model: Any) -> Options | None:
    about = getattr(model, "pretrained_cfg", None) or {}
    if not about.get("architecture"):
        return None
    options = {"model_name": about["architecture"]}
    for name in ("num_classes", "in_chans", "global_pool"):
        if isinstance(getattr(model, name, None), int | str):
            options[name] = getattr(model, name)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return options | ({"img_size": list(size)} if size else {})


FILES = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


def _timm_allows(options: Options) -> bool:
    name = options.get("model_name")
    return isinstance(name, str) and resolve("timm:is_model")(name) and not FILES & options.keys()


VIT_SIZES = ("image_size", "patch_size", "hidden_dim", "mlp_dim", "dropout", "attention_dropout")


def _vit_options(model: Any) -> Options | None:
    if type(model).__name__ != "VisionTransformer":
        return None
    options = {name: getattr(model, name) for name in VIT_SIZES}
    layers = model.encoder.layers
    options |= {"num_layers": len(layers), "num_heads": layers[0].num_heads}
    return options | {
        "num_classes": model.num_classes,
        "representation_size": model.representation_size,
    }


FACTORIES = table_of(
    [
        Factory("timm:create_model", "timm", _timm_options, _timm_allows),
        Factory(
            "torchvision.models:VisionTransformer", "torchvision", _vit_options, lambda _: True
        ),
    ]
)
