"""Checkpoints of transformers: found by hub name or folder, checked, loaded without pickle."""

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.config.model import LanguageConfig
from d2dmoe.errors import CheckpointError, ConfigError

Model = TypeVar("Model", bound=PreTrainedModel)


def create(
    cfg: LanguageConfig,
    about: dict[str, Any],
    model_class: type[Model],
    others: dict[str, Any],
) -> tuple[dict[str, Any], Model]:
    """A model of transformers as it is there, with fresh or pretrained weights, and its options.

    Args:
        cfg: what is asked for.
        about: description of the data, with `length`, `vocab_size` and, where the
            vocabulary is to be compared with the checkpoint's, `vocabulary_sha256`.
        model_class: its class.
        others: options of the class beside `cfg.sizes`; a checkpoint need not agree with them.

    Raises:
        CheckpointError: the weights cannot be had, or have other sizes.
        ConfigError: the data's samples are too long, or its tokenizer is another.
    """
    if cfg.weights == "scratch":
        options: dict[str, Any] = cfg.sizes | {"vocab_size": about["vocab_size"]} | others
        config = _config_class(model_class)(**options, initializer_range=initial_std(cfg.d_model))
        model = model_class(config)
    else:
        config = _checked_config(cfg)
        _check_tokenizer(cfg.weights, config, about)
        config.update({k: v for k, v in others.items() if v is not None})
        model = _load(model_class, cfg.weights, config)
    longest = config.max_position_embeddings
    if about["length"] > longest:
        raise ConfigError(
            f"data.length = {about['length']} tokens exceeds the {longest} positions of the model. "
            f"Lower it, or raise model.positions where the model is trained from scratch."
        )
    return json.loads(config.to_json_string(use_diff=False)), model


def build(model_class: type[Model], options: dict[str, Any]) -> Model:
    """The class's modules with fresh weights."""
    return model_class(_config_class(model_class).from_dict(options))


def _config_class(model_class: type[Model]) -> Any:
    return model_class.config_class


def initial_std(d_model: int) -> float:
    """Standard deviation of fresh weights: √(2 / (5 d_model)), "small init" (Nguyen and Salazar
    2019). At d_model 768 it is the usual 0.02; narrow models train far better with it."""
    return math.sqrt(2 / (5 * d_model))


HEADS = ("classifier.", "bert.pooler.")  # a checkpoint may lack them: the task trains them


def activation_name(name: str) -> str:
    """Our name of a checkpoint's activation.

    Raises:
        CheckpointError: it is none that the conversion knows.
    """
    aliases = {alias: ours for ours, about in ACTIVATIONS.items() for alias in about.aliases}
    if name not in aliases:
        raise CheckpointError(
            f"the checkpoint's activation '{name}' is not described; described are "
            f"{', '.join(aliases)} (d2dmoe/activations.py)."
        )
    return aliases[name]


def linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear map that uses a given weight [out, in] and bias [out]."""
    layer: Any = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight, layer.bias = weight, bias
    return layer


def _place(weights: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is called with."""
    kind, _, name = weights.partition(":")
    if kind == "path":
        if not (Path(name) / "config.json").is_file():
            raise CheckpointError(
                f"{weights} holds no config.json. Give the folder that save_pretrained wrote."
            )
        return name, {"local_files_only": True}
    name, _, revision = name.partition("@")
    return name, {"revision": revision} if revision else {}


def _checked_config(cfg: LanguageConfig) -> PretrainedConfig:
    place, options = _place(cfg.weights)
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise _not_loaded(cfg.weights, error) from error
    cfg.check_config(config.to_dict())
    return config


def _check_tokenizer(weights: str, config: PretrainedConfig, about: dict[str, Any]) -> None:
    """The data's tokenizer must be the checkpoint's: other ids are other words."""
    if about["vocab_size"] > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {about['vocab_size']} tokens, but {weights} knows only "
            f"{config.vocab_size}. Set data.tokenizer.source to the checkpoint's own tokenizer."
        )
    for name, key in (("pad_id", "pad_token_id"), ("end_of_text_id", "eos_token_id")):
        ours, theirs = about.get(name), getattr(config, key, None)
        allowed = theirs if isinstance(theirs, list) else [theirs]
        if None not in (ours, theirs) and ours not in allowed:
            raise ConfigError(
                f"the tokenizer's {name} is {ours}, but {weights} has {key} = {theirs}: it was "
                "trained with another tokenizer. Set data.tokenizer.source to the checkpoint's own."
            )
    _check_vocabulary(weights, about)


def _check_vocabulary(weights: str, about: dict[str, Any]) -> None:
    kind, _, name = weights.partition(":")
    path = Path(name) / "tokenizer.json"
    if kind != "path" or "vocabulary_sha256" not in about or not path.is_file():
        return
    from tokenizers import Tokenizer

    from d2dmoe.data.tokenizer import vocabulary_digest

    if vocabulary_digest(Tokenizer.from_file(str(path))) != about["vocabulary_sha256"]:
        raise ConfigError(
            f"the data were tokenised with another vocabulary than {path}. Set "
            f"data.tokenizer.source to path:{name}."
        )


def _load(model_class: type[Model], weights: str, config: PretrainedConfig) -> Model:
    load: Any = model_class.from_pretrained  # of several kinds of results
    place, options = _place(weights)
    try:
        model, found = load(
            place, config=config, use_safetensors=True, dtype="float32", **options,
            ignore_mismatched_sizes=True,  # a classifier of another number of classes
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # OSError, RuntimeError, SafetensorError, the hub client's own
        raise _not_loaded(weights, error) from error
    fresh = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    wrong = sorted(key for key in fresh if not key.startswith(HEADS))
    if wrong:
        raise CheckpointError(
            f"{weights} does not fit the configured model: {len(wrong)} tensors are missing or of "
            f"another shape, first {wrong[:3]}. Fetch the checkpoint again, or give another."
        )
    return model


def _not_loaded(weights: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{weights} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). Check "
        "the name, the network and, for a gated model, `hf auth login`; or fetch it elsewhere and "
        "give its folder, with config.json and model.safetensors, as path:FOLDER."
    )
