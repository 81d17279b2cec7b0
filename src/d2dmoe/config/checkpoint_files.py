"""What pretrained weights say of their model, read from small files alone, without torch.

Of a folder or a name of the Hugging Face hub it is config.json, of a file of a ViT the header, of
torchvision's models a table. The hub is asked once: what it gave stays in its own cache, from which
later calls read it without a network.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2dmoe.config.model import VITS, LanguageConfig, ViTConfig
from d2dmoe.errors import CheckpointError
from d2dmoe.io.shapes import tensor_shapes
from d2dmoe.lookup import resolve
from d2dmoe.models import ARCHITECTURES

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
TOKENS = {"pad": "pad_token", "end_of_text": "eos_token"}  # ours: their names in the latter


def options_said(weights: str, root: Path, architecture: Any = None) -> dict[str, Any]:
    """The options of the model section that weights say.

    Args:
        weights: their name, as in the section.
        root: where relative paths begin.
        architecture: as it is given; files of tensors do not say it, and are vit's unless it is.

    Raises:
        CheckpointError: the weights are not there, cannot be read, or are of an architecture that
            is not described here.
    """
    kind, _, name = weights.partition(":")
    if kind == "torchvision":
        return {"architecture": "vit"} | _of_torchvision(weights, name)
    if kind == "path" and not (root / name).is_dir():
        known = architecture if architecture in list(ARCHITECTURES) else "vit"
        options = resolve(ARCHITECTURES[known].options)
        said = _read(weights, root / name, lambda path: options.said_by(tensor_shapes(path)))
        return {"architecture": known} | said
    config = _json(weights, CONFIG, root)
    architecture = config.get("model_type")
    record = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    options = resolve(record.options) if record else None
    if options is None or not issubclass(options, LanguageConfig):
        raise CheckpointError(
            f"{weights} is a checkpoint of the architecture '{architecture}', which is not "
            f"described. Described are {', '.join(_of_transformers())}; and vit, with weights of "
            "torchvision."
        )
    return {"architecture": architecture} | options.said_by(config)


def _of_torchvision(weights: str, name: str) -> dict[str, Any]:
    said = ViTConfig.said_by_torchvision(name)
    if not said:
        raise CheckpointError(
            f"{weights}: torchvision has no such Vision Transformer; it has {', '.join(VITS)}. "
            "Give torchvision:MODEL:WEIGHTS, as torchvision:vit_b_16:DEFAULT."
        )
    return said


def tokens_said(weights: str, root: Path) -> dict[str, str]:
    """The special tokens of a checkpoint's own tokenizer, by the options that name them."""
    config = _json(weights, TOKENIZER, root, needed=False)
    texts = {ours: _text(config.get(theirs)) for ours, theirs in TOKENS.items()}
    return {ours: text for ours, text in texts.items() if text}


def _of_transformers() -> list[str]:
    return [name for name, record in ARCHITECTURES.items() if record.data != "images"]


def _text(token: Any) -> str | None:
    """A token as it is written: by itself, or as an object with options."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _json(weights: str, file: str, root: Path, needed: bool = True) -> Mapping[str, Any]:
    """A checkpoint's file of JSON; empty if there is none and none is needed."""
    kind, _, name = weights.partition(":")
    folder = root / name
    path = folder / file if kind == "path" or folder.is_dir() else _of_the_hub(weights, file)
    if path is not None and (needed or path.is_file()):
        return _read(weights, path, _object)
    if needed:
        raise CheckpointError(f"{weights} has no {file}; give a checkpoint of transformers.")
    return {}


def _object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object")
    return content


def _read(weights: str, path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{weights} cannot be read: {error}. Correct the path, or save the weights again: "
            f"{LanguageConfig.forms_text}; of a ViT {ViTConfig.forms_text}."
        ) from error


def _of_the_hub(weights: str, file: str) -> Path | None:
    """A small file of the hub, from its cache where it is there; None if there is no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = weights.partition(":")[2].partition("@")
    try:
        cached = try_to_load_from_cache(name, file, revision=revision or None)
        if cached is _CACHED_NO_EXIST:
            return None
        return Path(cached or hf_hub_download(name, file, revision=revision or None))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        absent = isinstance(error, EntryNotFoundError)
        if absent and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise CheckpointError(
            f"{weights}: {file}, which says what the model is, is not in the cache of the Hugging "
            f"Face hub and cannot be fetched ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name, the network and, for a gated model, "
            "`hf auth login`; or fetch it elsewhere and give its folder as path:FOLDER; or give "
            "architecture, sizes and data.tokenizer yourself."
        ) from error
