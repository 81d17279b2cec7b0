"""Tensors in safetensors files, written atomically; damaged files are named with a remedy.

The header holds a SHA-256 of the whole file, the header itself included, and a file is checked
against it before its tensors are used. Files are written piece by piece, so that a state that fills
the memory of a GPU, or tokens that lie on disk, need little memory of the host. The library's own
writer takes them all at once; files are read with the library.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from d2dmoe.errors import CheckpointError
from d2dmoe.io.files import write_atomically
from d2dmoe.io.header import DIGEST, UNKNOWN, check_digest
from d2dmoe.processes import leads

PIECE = 64 * 2**20  # bytes
FORMATS = {  # the names that safetensors has for number formats
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Save tensors as safetensors, atomically. The same tensors give the same bytes.

    What lies elsewhere, or not in its order, is copied in pieces of `PIECE` bytes.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    write_atomically(path, lambda p: write_tensors(p, tensors, metadata or {}))


def extra_memory(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of host memory that `save_tensors` needs at most, beside the tensors."""
    copied = (_pieces(t)[0] for t in tensors.values() if not _lies_ready(t))
    return max((piece.nbytes for piece in copied), default=0)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write such a file, not atomically."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned
    described: dict[str, Any] = {"__metadata__": {**metadata, DIGEST: UNKNOWN}}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        about = {"dtype": FORMATS[tensor.dtype], "shape": list(tensor.shape)}
        described[name] = about | {"data_offsets": [begin, end]}
    header = _header(described)
    digest = hashlib.sha256(header)
    with open(path, "wb") as file:
        file.write(header)
        for name in names:
            _append(tensors[name], file, digest)
        described["__metadata__"][DIGEST] = digest.hexdigest()
        file.seek(0)
        file.write(_header(described))


def _header(described: dict[str, Any]) -> bytes:
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _append(tensor: Tensor, file: BinaryIO, digest: "hashlib._Hash") -> None:
    """Write a tensor's content; of one on the CPU without a copy."""
    for piece in _pieces(tensor.detach()):
        content = piece.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        digest.update(content)
        file.write(content)


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor in parts of its first dimension, where it must be copied to be written."""
    if _lies_ready(tensor) or tensor.dim() == 0:
        return [tensor]
    return tensor.split(max(1, PIECE * len(tensor) // tensor.nbytes))


def _lies_ready(tensor: Tensor) -> bool:
    return tensor.numel() == 0 or (tensor.device.type == "cpu" and tensor.is_contiguous())


def load_tensors(
    path: Path, remedy: str, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on a device, and metadata of a file that `save_tensors` wrote; `remedy` completes
    the error message. They lie on the device alone; those on the CPU are read when they are used.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    with _naming(path, remedy):
        check_digest(path)
        return _read(path, device)


def load_published(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that others wrote, which has no digest.

    Raises:
        CheckpointError: the file is missing, truncated or no such file.
    """
    with _naming(path, remedy):
        return _read(path, "cpu")[0]


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt", device=str(device)) as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}


@contextmanager
def _naming(path: Path, remedy: str) -> Iterator[None]:
    """Errors in reading a file name it and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. {remedy}") from error
    except (SafetensorError, OSError, ValueError) as error:
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        raise CheckpointError(
            f"{path} is damaged or truncated ({size} bytes: {error}). {remedy}"
        ) from error


def distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once: of names that share one, as tied embeddings do, the first."""
    seen, kept = set(), {}
    for name, tensor in tensors.items():
        place = (_where(tensor), tensor.shape)
        if place not in seen or tensor.numel() == 0:
            kept[name] = tensor
        seen.add(place)
    return kept


def _where(tensor: Tensor) -> int:
    """What is the same of tensors that share their numbers; of one that lies in parts on several
    processes, where this one's are."""
    if in_parts(tensor):
        own: Any = tensor
        return own.to_local().untyped_storage()._cdata
    return tensor.data_ptr()


def in_parts(tensor: Tensor) -> bool:
    """Whether it is a DTensor, whose module few jobs have imported."""
    return hasattr(tensor, "full_tensor")


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, ready to be written while the tensors change."""
    form = torch.contiguous_format
    return {n: t.detach().to("cpu", copy=True, memory_format=form) for n, t in tensors.items()}


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as wholes, those that lie in parts on several processes on the CPU of the first."""
    return {name: _whole(t) if in_parts(t) else t for name, t in tensors.items()}


def _whole(tensor: Any) -> Tensor:
    whole = tensor.full_tensor()
    return whole.cpu() if leads() else whole[:0]


def dealt(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have, where another lies in parts; else itself."""
    if not in_parts(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    parted: Any = like
    return distribute_tensor(tensor, parted.device_mesh, parted.placements, src_data_rank=None)


def load_distinct(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `distinct` kept of a state dict into a model that ties the same tensors, in place.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    expected = distinct(model.state_dict()).keys()
    if expected != tensors.keys():
        wrong = sorted(expected ^ tensors.keys())
        raise RuntimeError(f"{len(wrong)} tensors are missing or unknown, first {wrong[:3]}")
    model.load_state_dict(tensors, strict=False)
