"""Files that are either whole or not there: safetensors and text written by atomic rename."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from d2dmoe.errors import CheckpointError, UserError


def sha256(path: Path) -> str:
    """The file's SHA-256 as hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary neighbour of `path`, flush it to disk, then rename it to `path`.

    Whatever goes wrong before the rename, an earlier `path` stays as it was and no debris remains.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(_explain(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _explain(path: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    remedy = "free some space" if full else "check the folder's permissions and the disk"
    cause = "the disk is full" if full else str(error)
    kept = "The earlier version is intact. " if path.exists() else ""
    return f"cannot save {path}: {cause}. {kept}To go on: {remedy}, then run the same command again."


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Save tensors as safetensors, atomically. The same tensors give the same bytes.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, lambda p: save_file(contiguous, p, dict(metadata or {})))


def load_tensors(path: Path, remedy: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; `remedy` completes the error message.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. {remedy}") from error
    except (SafetensorError, OSError) as error:
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        raise CheckpointError(
            f"{path} is damaged or truncated ({size} bytes: {error}). {remedy}"
        ) from error
