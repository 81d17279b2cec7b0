"""The dense models of other libraries: the library's function that builds one, and its options.

A folder that somebody wrote names a function to be called. So only functions of this table are,
and with none of the options that make them read further files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from d2dmoe.errors import CheckpointError
from d2dmoe.ffn import FFN
from d2dmoe.lookup import resolve, table_of
from d2dmoe.moe import MoE

Options = dict[str, Any]


@dataclass(frozen=True)
class Factory:
    """How a library builds a model."""

    name: str  # "module:function"
    library: str  # the package that its models' classes come from
    guess: Callable[[Any], Iterator[Options]]  # options that a model may have been built with
    allows: Callable[[Options], bool]  # whether a folder may ask for a model with these options


def library_of(model: nn.Module) -> str:
    """The package that a model's class comes from."""
    return type(model).__module__.partition(".")[0]


def guesses(model: nn.Module) -> Iterator[tuple[str, Options]]:
    """Factories and options that may have built a model; whether they have is to be seen."""
    for factory in FACTORIES.values():
        if factory.library == library_of(model):
            for options in factory.guess(model):
                yield factory.name, options


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
            f"{', '.join(FACTORIES)} with harmless options. Build the dense model yourself and "
            "call from_pretrained(folder, model=…)."
        )
    return resolve(factory.name)(**options)


def _timm(model: Any) -> Iterator[Options]:
    about = getattr(model, "pretrained_cfg", None) or {}
    if not about.get("architecture"):
        return
    options = {"model_name": about["architecture"]}
    for name in ("num_classes", "in_chans", "global_pool"):
        if isinstance(getattr(model, name, None), int | str):
            options[name] = getattr(model, name)
    if not getattr(model, "has_class_token", True):
        options["class_token"] = False
    patches: Any = getattr(model, "patch_embed", None)
    if getattr(patches, "img_size", None):
        options["img_size"] = list(patches.img_size)
    yield options
    if patches is not None and isinstance(getattr(model, "embed_dim", None), int):
        sizes = {"embed_dim": model.embed_dim, "patch_size": patches.patch_size[0]}
        yield options | sizes | (_of_stages(model) if hasattr(model, "layers") else _depth(model))


def _depth(model: Any) -> Options:
    """Sizes of a ViT."""
    ffn = next(m for m in model.modules() if isinstance(m, FFN | MoE))
    d_ff = ffn.d_ff if isinstance(ffn, FFN) else ffn.num_experts * ffn.expert_size
    heads = model.blocks[0].attn.num_heads
    return {"depth": len(model.blocks), "num_heads": heads, "mlp_ratio": d_ff / ffn.d_model}


def _of_stages(model: Any) -> Options:
    """Sizes of a Swin."""
    blocks = [stage.blocks for stage in model.layers]
    return {
        "depths": [len(stage) for stage in blocks],
        "num_heads": [stage[0].attn.num_heads for stage in blocks],
        "window_size": list(blocks[0][0].window_size),
    }


FILES = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


def _timm_allows(options: Options) -> bool:
    name = options.get("model_name")
    return isinstance(name, str) and resolve("timm:is_model")(name) and not FILES & options.keys()


VIT = ("image_size", "patch_size", "hidden_dim", "mlp_dim", "dropout", "attention_dropout")


def _vit(model: Any) -> Iterator[Options]:
    if type(model).__name__ == "VisionTransformer":
        options = {name: getattr(model, name) for name in VIT}
        for name in ("num_classes", "representation_size"):
            options[name] = getattr(model, name)
        layers = model.encoder.layers
        yield options | {"num_layers": len(layers), "num_heads": layers[0].num_heads}


NAMED = {"SwinTransformer": "swin*", "MaxVit": "maxvit*"}  # of torchvision, by their class


def _named(model: Any) -> Iterator[Options]:
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    pattern = NAMED.get(type(model).__name__)
    for name in resolve("torchvision.models:list_models")(include=pattern) if pattern else ():
        yield {"name": name, "num_classes": classifier.out_features}


def _named_allows(options: Options) -> bool:
    known = resolve("torchvision.models:list_models")()
    return options.get("name") in known and not any("weights" in option for option in options)


FACTORIES = table_of(
    [
        Factory("timm:create_model", "timm", _timm, _timm_allows),
        Factory("torchvision.models:VisionTransformer", "torchvision", _vit, lambda _: True),
        Factory("torchvision.models:get_model", "torchvision", _named, _named_allows),
    ]
)
