"""Read what rule `dataset` prepared: one object per split, the same calls for all kinds of data.

A sample takes two steps: `read` gets it as it is stored, `read_changed` as random changes leave it,
on the CPU and in worker processes; `batch` or `training_batch` makes of it what a model is called
with, on the device.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import BaseModel
from torch import Generator, Tensor, device
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.augment import draw_changes, flip_and_shift, mix, normalise, resized_crop
from d2dmoe.data.share import Share
from d2dmoe.errors import CheckpointError, DataError
from d2dmoe.io.header import DIGEST
from d2dmoe.io.tensors import load_tensors

if TYPE_CHECKING:
    from d2dmoe.data.image_sources import Images, Part

RERUN = "Rerun rule `dataset` (`snakemake --forcerun dataset`)."

Raw = tuple[Tensor, ...]  # samples as stored, each tensor [B, ...]
Batch = tuple[dict[str, Tensor], Tensor]  # keyword arguments of the model's forward, and targets


KEYS = {  # of dataset.json, by the kind of data
    "images": ("source", "image_size", "mean", "std", "in_memory", "classes"),
    "texts": ("classes", "length", "pad_id", "vocab_size"),
    "corpus": ("length", "end_of_text_id", "vocab_size"),
}


class Description(BaseModel):
    """What dataset.json says of every kind."""

    kind: Literal["images", "texts", "corpus"]
    sha256: dict[str, str]


class Split(Protocol):
    """The samples of one split, whatever their kind."""

    @property
    def about(self) -> dict[str, Any]:
        """What dataset.json says."""

    def __len__(self) -> int:
        """Number of samples."""

    @property
    def lengths(self) -> Tensor | None:
        """Tokens of each sample without padding, int64 [N]; None where samples have none."""

    @property
    def decodes(self) -> bool:
        """Whether reading a sample takes time, so that processes of its own help."""

    def read(self, indices: Tensor) -> Raw:
        """The samples of int64 [B] indices.

        Raises:
            DataError: a sample cannot be read.
        """

    def read_changed(
        self, indices: Tensor, share: Share, cfg: TrainingConfig, generator: Generator
    ) -> Raw:
        """A share of a batch of int64 [B] indices, as training changes each sample for itself. The
        whole batch's random numbers are drawn, so that shares together are the batch.

        Raises:
            DataError: a sample cannot be read.
        """

    def batch(self, raw: Raw, device: device) -> Batch:
        """What `read` gave, as a model is evaluated with it."""

    def training_batch(
        self, raw: Raw, cfg: TrainingConfig, generator: Generator, device: device
    ) -> Batch:
        """What `read_changed` gave, as a model is trained with it; what changes samples together is
        drawn from `generator`, one for the whole batch."""


@dataclass(frozen=True)
class ImageSplit:
    """The images of one split.

    `decode` turns int64 [B] indices into uint8 [B, C, H, W]; `crop` turns an index and the numbers
    drawn for it into a crop of the image as it was published, uint8 [C, H, W]. Without it, crops
    are of what `decode` gives.
    """

    labels: Tensor  # int64 [N]
    classes: list[str]
    mean: list[float]
    std: list[float]
    decode: Callable[[Tensor], Tensor]
    crop: Callable[[int, Tensor], Tensor] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    lengths = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def decodes(self) -> bool:
        """Whether images are decoded each time that they are read."""
        return self.crop is not None

    def pixels(self, indices: Tensor) -> Tensor:
        """The images of int64 [B] indices as uint8 [B, 3, H, W], grey ones in three channels.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self.decode(indices).expand(-1, 3, -1, -1).contiguous()

    def read(self, indices: Tensor) -> Raw:
        """Pixels, uint8 [B, 3, H, W], and labels, int64 [B]."""
        return self.pixels(indices), self.labels[indices]

    def read_changed(
        self, indices: Tensor, share: Share, cfg: TrainingConfig, generator: Generator
    ) -> Raw:
        """Augmented pixels, uint8 [B, 3, H, W], and labels, int64 [B], of a share of the batch. If
        images are mixed, with that before the first, which may be another share's: [1 + B, …]."""
        drawn = draw_changes(cfg.augment, len(indices), generator)
        own = torch.arange(len(indices))[share.run(len(indices))]
        if _mixes(cfg):
            before = share.run(len(indices)).start - 1
            own = torch.cat([torch.tensor([before % len(indices)]), own])
        drawn = {name: numbers[own] for name, numbers in drawn.items()}
        chosen = indices[own]
        pixels = self._crops(chosen, drawn["crop"]) if "crop" in drawn else self.pixels(chosen)
        return flip_and_shift(pixels, drawn, cfg.augment.crop_padding), self.labels[chosen]

    def _crops(self, indices: Tensor, drawn: Tensor) -> Tensor:
        """Resized crops, uint8 [B, 3, H, W]."""
        if self.crop is None:
            images = self.pixels(indices)
            crops = [resized_crop(x, d, x.shape[1:]) for x, d in zip(images, drawn, strict=True)]
        else:
            both = zip(indices.tolist(), drawn, strict=True)
            crops = [self.crop(i, d).expand(3, -1, -1) for i, d in both]
        return torch.stack(crops) if crops else self.pixels(indices)

    def batch(self, raw: Raw, device: device) -> Batch:
        """Normalised pixels, float [B, 3, H, W], and labels, int64 [B]."""
        pixels, labels = (x.to(device, non_blocking=True) for x in raw)
        return {"x": normalise(pixels, self.mean, self.std)}, labels

    def training_batch(
        self, raw: Raw, cfg: TrainingConfig, generator: Generator, device: device
    ) -> Batch:
        """Normalised and mixed pixels, float [B, 3, H, W]; class probabilities [B, classes]."""
        inputs, labels = self.batch(raw, device)
        images, targets = inputs["x"], one_hot(labels, len(self.classes)).to(inputs["x"])
        if _mixes(cfg):
            images, targets = mix(images, targets, cfg.mixup, cfg.cutmix, generator)
        return {"x": images}, targets


def _mixes(cfg: TrainingConfig) -> bool:
    return bool(cfg.mixup or cfg.cutmix)


@dataclass(frozen=True)
class TextSplit:
    """Labelled texts; text i is `tokens[offsets[i] : offsets[i + 1]]`."""

    tokens: Tensor  # int32 [all tokens], special ones included
    offsets: Tensor  # int64 [N + 1]
    labels: Tensor  # int64 [N]
    about: dict[str, Any]

    decodes = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, special ones included, int64 [N]."""
        return self.offsets.diff()

    def read(self, indices: Tensor) -> Raw:
        """Tokens, int64 [B, T], padded to the batch's longest text; which of them are real, int64
        [B, T] of 1 and 0; labels, int64 [B]."""
        starts, ends = self.offsets[indices].tolist(), self.offsets[indices + 1].tolist()
        texts = [self.tokens[a:b].long() for a, b in zip(starts, ends, strict=True)]
        tokens = pad_sequence(texts, batch_first=True, padding_value=self.about["pad_id"])
        mask = torch.arange(tokens.shape[1]) < self.lengths[indices, None]
        return tokens, mask.long(), self.labels[indices]

    def batch(self, raw: Raw, device: device) -> Batch:
        """Tokens and mask, int64 [B, T], and labels, int64 [B]."""
        tokens, mask, labels = (x.to(device, non_blocking=True) for x in raw)
        return {"input_ids": tokens, "attention_mask": mask}, labels

    def read_changed(
        self, indices: Tensor, share: Share, cfg: TrainingConfig, generator: Generator
    ) -> Raw:
        """Of what `read` gives of the batch, a share: texts are trained on as they are, and padded
        as in the whole batch, whose dropout has that shape."""
        return tuple(map(share.of, self.read(indices)))

    def training_batch(
        self, raw: Raw, cfg: TrainingConfig, generator: Generator, device: device
    ) -> Batch:
        """The same as `batch`."""
        return self.batch(raw, device)


@dataclass(frozen=True)
class CorpusSplit:
    """Blocks of running text. The last token of a block is the first of the one that follows it."""

    tokens: Tensor  # int32 [N, length + 1]
    about: dict[str, Any]

    decodes = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each block that a model reads, int64 [N]: all `length`."""
        return torch.full((len(self),), self.tokens.shape[1] - 1)

    def read(self, indices: Tensor) -> Raw:
        """Tokens, int64 [B, length + 1]."""
        return (self.tokens[indices].long(),)

    def batch(self, raw: Raw, device: device) -> Batch:
        """Tokens, int64 [B, length], and the token after each, int64 [B, length]."""
        tokens = raw[0].to(device, non_blocking=True)
        return {"input_ids": tokens[:, :-1]}, tokens[:, 1:]

    def read_changed(
        self, indices: Tensor, share: Share, cfg: TrainingConfig, generator: Generator
    ) -> Raw:
        """What `read` gives of a share of the batch: text is trained on as it is."""
        return self.read(share.of(indices))

    def training_batch(
        self, raw: Raw, cfg: TrainingConfig, generator: Generator, device: device
    ) -> Batch:
        """The same as `batch`."""
        return self.batch(raw, device)


def open_split(folder: Path, name: str, root: Path = Path(".")) -> Split:
    """Open the train, validation or test split that `prepare` wrote into `folder`.

    `root` is the repository root, as for `prepare`; it matters only for images that are not kept in
    memory, which are read from the source.

    Raises:
        DataError: a prepared file is missing, truncated or altered, or the source has changed.
    """
    about = _description(folder / "dataset.json")
    path = folder / f"{name}.safetensors"
    expected = about["sha256"].get(name)
    if not path.is_file() or expected is None:
        raise DataError(f"{path} is missing. {RERUN}")
    try:
        tensors, metadata = load_tensors(path, RERUN)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if metadata[DIGEST] != expected:
        raise DataError(f"{path} is not the split that dataset.json beside it describes. {RERUN}")
    if about["kind"] == "texts":
        return TextSplit(**tensors, about=about)
    if about["kind"] == "corpus":
        return CorpusSplit(**tensors, about=about)
    return _image_split(tensors, about, "test" if name == "test" else "train", root)


def _description(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
        kind = Description.model_validate(about).kind
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}). {RERUN}") from error
    if missing := [key for key in KEYS[kind] if key not in about]:
        raise DataError(f"{path} lacks {', '.join(missing)}. {RERUN}")
    return about


def _image_split(tensors: dict[str, Tensor], about: dict, part: "Part", root: Path) -> ImageSplit:
    statistics = about["classes"], about["mean"], about["std"]
    if about["in_memory"]:
        decode = partial(Tensor.index_select, tensors["images"], 0)
        return ImageSplit(tensors["labels"], *statistics, decode, about=about)
    from d2dmoe.data.image_sources import load_images  # decoders are slow to import

    images, size = load_images(about["source"], part, root), about["image_size"]
    _check_unchanged(images, tensors["indices"], tensors["labels"])
    decode = partial(_decode, images, tensors["indices"], size)
    crop = partial(_crop, images, tensors["indices"], size)
    return ImageSplit(tensors["labels"], *statistics, decode, crop, about)


def _check_unchanged(images: "Images", indices: Tensor, labels: Tensor) -> None:
    inside = int(indices.max()) < len(images.labels)
    if not inside or not torch.equal(images.labels[indices], labels):
        raise DataError(f"{images.source} has changed since it was split. {RERUN}")


def _decode(images: "Images", indices: Tensor, size: int, chosen: Tensor) -> Tensor:
    pixels = [images.pixels(i, size).expand(3, -1, -1) for i in indices[chosen].tolist()]
    return torch.stack(pixels) if pixels else torch.empty(0, 3, size, size, dtype=torch.uint8)


def _crop(images: "Images", indices: Tensor, size: int, chosen: int, drawn: Tensor) -> Tensor:
    return resized_crop(images.whole(int(indices[chosen])), drawn, (size, size))
