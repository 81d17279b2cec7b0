"""Saved models by the name of a folder, or by their name on the hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from d2dmoe.errors import CheckpointError

CONFIG = "config.json"


def read_config(name: str, revision: str | None, token: Any) -> dict[str, Any]:
    """The configuration of a saved model.

    Raises:
        CheckpointError: there is no such folder and no such name, or it is damaged.
    """
    path = Path(name) / CONFIG
    if not Path(name).is_dir():
        with _reaching(name):
            path = Path(hf_hub_download(name, CONFIG, revision=revision, token=token))
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Give a folder that save_pretrained wrote."
        ) from error
    if not isinstance(about, dict):
        raise CheckpointError(f"{path} holds no mapping. Give a folder that save_pretrained wrote.")
    return about


def fetch(name: str, patterns: list[str], revision: str | None, token: Any) -> Path:
    """The folder with the files of a saved model that fit a pattern.

    Raises:
        CheckpointError: the hub does not give them.
    """
    if Path(name).is_dir():
        return Path(name)
    with _reaching(name):
        return Path(
            snapshot_download(name, allow_patterns=patterns, revision=revision, token=token)
        )


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Errors of the hub name what was asked of it."""
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{name} is no folder here, and is not to be had from the hub "
            f"({type(error).__name__}: {first}). Check the name, the network and, for a private "
            "model, `hf auth login`."
        ) from error
