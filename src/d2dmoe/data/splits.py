"""Read what rule `dataset` prepared: one object per split, its pixels kept or decoded on demand."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from d2dmoe.data.sources import Images, load_images
from d2dmoe.errors import DataError
from d2dmoe.files import sha256
from d2dmoe.tensors import load_tensors

RERUN = "Rerun rule `dataset` (`snakemake --forcerun dataset`)."


@dataclass(frozen=True)
class ImageSplit:
    """The images of one split; `read` turns int64 [B] indices into uint8 [B, C, H, W]."""

    labels: torch.Tensor  # int64 [N]
    classes: list[str]
    mean: list[float]
    std: list[float]
    read: Callable[[torch.Tensor], torch.Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images of int64 [B] indices as uint8 [B, 3, H, W], grey ones in three channels.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self.read(indices).expand(-1, 3, -1, -1).contiguous()


def open_split(folder: Path, name: str, root: Path = Path(".")) -> ImageSplit:
    """Open the train, validation or test split that `prepare` wrote into `folder`.

    `root` is the repository root, as for `prepare`; it matters only for sets that are not kept in
    memory, whose images are read from the source.

    Raises:
        DataError: a prepared file is missing, truncated or altered, or the source has changed.
    """
    about = _description(folder / "dataset.json")
    path = folder / f"{name}.safetensors"
    expected = about["sha256"].get(name)
    if not path.is_file() or expected is None:
        raise DataError(f"{path} is missing. {RERUN}")
    found = sha256(path)
    if found != expected:
        raise DataError(
            f"{path} is damaged or truncated ({path.stat().st_size} bytes): expected SHA-256 "
            f"{expected}, found {found}. {RERUN}"
        )
    tensors, _ = load_tensors(path, RERUN)
    if about["in_memory"]:
        read = partial(torch.Tensor.index_select, tensors["images"], 0)
    else:
        images = load_images(about["source"], "test" if name == "test" else "train", root)
        _check_unchanged(images, tensors["indices"], tensors["labels"])
        read = partial(_decode, images, tensors["indices"], about["image_size"])
    return ImageSplit(tensors["labels"], about["classes"], about["mean"], about["std"], read)


def _description(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). {RERUN}") from error


def _check_unchanged(images: Images, indices: torch.Tensor, labels: torch.Tensor) -> None:
    inside = int(indices.max()) < len(images.labels)
    if not inside or not torch.equal(images.labels[indices], labels):
        raise DataError(f"{images.source} has changed since it was split. {RERUN}")


def _decode(images: Images, indices: torch.Tensor, size: int, chosen: torch.Tensor) -> torch.Tensor:
    pixels = [images.pixels(i, size) for i in indices[chosen].tolist()]
    return torch.stack([p.expand(3, -1, -1) for p in pixels])  # [B, 3, H, W]
