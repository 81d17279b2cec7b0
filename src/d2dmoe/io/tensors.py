"""Tensors in safetensors files, written atomically; damaged files are named with a remedy."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from d2dmoe.errors import CheckpointError
from d2dmoe.io.files import write_atomically


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Save tensors as safetensors, atomically. The same tensors give the same bytes.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, lambda p: save_file(contiguous, p, dict(metadata or {})))


def distinct(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor once: of names that share one, as tied embeddings do, the first."""
    seen, kept = set(), {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen or tensor.numel() == 0:
            kept[name] = tensor
        seen.add(place)
    return kept


def load_distinct(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load what `distinct` kept of a state dict into a model that ties the same tensors, in place.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    expected = distinct(model.state_dict()).keys()
    if expected != tensors.keys():
        wrong = sorted(expected ^ tensors.keys())
        raise RuntimeError(f"{len(wrong)} tensors are missing or unknown, first {wrong[:3]}")
    model.load_state_dict(tensors, strict=False)


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
