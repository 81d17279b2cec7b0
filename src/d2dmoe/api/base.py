"""The pretrained model that a converted one was made from, as far as this machine knows it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

CARD = "README.md"
TAG = "d2dmoe"  # of the cards of converted models
PROCESSING = (  # files of tokenizers and image processors
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "sentencepiece*.model",
    "spiece.model",
    "chat_template*",
    "*processor_config.json",
)


@dataclass(frozen=True)
class Base:
    """What is known of it; the folder holds its files, its tokenizer's among them."""

    name: str | None = None  # on the hub
    license: str | None = None
    folder: Path | None = None


def base_of(model: Any) -> Base:
    """The base of a model of transformers or timm. Nothing is fetched: what is not in a folder or
    in the hub's cache is not known."""
    about = getattr(model, "pretrained_cfg", None) or {}
    if about:  # timm's
        return Base(about.get("hf_hub_id"), about.get("license"))
    where = getattr(getattr(model, "config", None), "name_or_path", "")
    return _base_at(str(where)) if where else Base()


def copy_processing(base: Base, folder: Path) -> None:
    """Copy the base's tokenizer and image processor, where there are any, into a folder."""
    found = [] if base.folder is None else [p for n in PROCESSING for p in base.folder.glob(n)]
    for path in found:
        if path.is_file() and path.resolve().parent != folder.resolve():
            shutil.copyfile(path, folder / path.name)


def _base_at(where: str) -> Base:
    """`where` is a folder or a name on the hub."""
    name = None if Path(where).is_dir() or not _is_name(where) else where
    folder = Path(where) if name is None else _cached(name)
    if folder is None or not folder.is_dir():
        return Base(name)
    about = _metadata(folder / CARD)
    if TAG in (about.get("tags") or []):  # a converted model, saved anew
        return Base(about.get("base_model"), about.get("license"), folder)
    return Base(name, about.get("license"), folder)


def _is_name(where: str) -> bool:
    try:
        validate_repo_id(where)
    except HFValidationError:
        return False
    return True


def _cached(name: str) -> Path | None:
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _metadata(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    text = card.read_text(encoding="utf-8")
    return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
