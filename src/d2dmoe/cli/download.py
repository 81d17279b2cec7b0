"""Asks before it fetches a model that is large."""

import sys

import typer

from d2dmoe.errors import UserError

ASKED_FROM = 10**9  # bytes
WEIGHTS = ".safetensors"  # all that is read; a folder of the hub may hold other forms, unread


def consent(what: str, size: int, yes: bool) -> None:
    """Ask whether so many bytes may be fetched, if they are many.

    Raises:
        UserError: no, or there is nobody to ask.
    """
    if size <= ASKED_FROM or yes:
        return
    said = f"{what} has {size / 1e9:.1f} GB to download"
    if not sys.stdin.isatty():
        raise UserError(f"{said}. To go on, give the same command with --yes.")
    if not typer.confirm(f"{said}. Go on?", err=True):
        raise UserError("nothing was downloaded")


def hub_bytes(name: str, revision: str | None = None) -> int:
    """Bytes of a hub model's weights that are not in the local cache.

    Raises:
        UserError: the hub has no such model, or cannot be reached while nothing is cached.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or constants.is_offline_mode():
        return 0  # nothing will be fetched
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception as error:  # the client raises a dozen unrelated types
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return 0  # the network is down, the cache serves
        raise UserError(
            f"{name}: no such folder here, and the hub does not give a model of that name "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Check the name, the "
            "network and, for a gated model, `hf auth login`."
        ) from error
    missing = [
        file.size or 0
        for file in info.siblings or []
        if file.rfilename.endswith(WEIGHTS)
        and "/" not in file.rfilename
        and not isinstance(try_to_load_from_cache(name, file.rfilename, revision=info.sha), str)
    ]
    return sum(missing)
