"""Tensors in safetensors files, written atomically; damaged files are named with a remedy."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from d2dmoe.errors import CheckpointError
from d2dmoe.files import write_atomically


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
