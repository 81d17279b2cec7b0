"""Datasets as they are published, all brought to one form: labels, class names, readable images.

Images are downloaded where a user of each library expects them: Hugging Face sets in its own cache
(HF_HOME, by default ~/.cache/huggingface), torchvision's in resources/downloads. Local names are
relative to the repository root.

The test set is the source's own split of that name. Where there is none, or its labels are withheld
(ImageNet), the source's validation split is the test set, as is customary.
"""

import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from d2dmoe.config.sources import TEST_NAMES, check_images, find_test_folder
from d2dmoe.data.pictures import readable
from d2dmoe.data.vendored import vendored_file
from d2dmoe.errors import DataError

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Images:
    """One part of a published set; `read` decodes the image of an index."""

    source: str
    labels: torch.Tensor  # int64 [N]
    classes: list[str]
    read: Callable[[int], Image.Image]
    place: Callable[[int], str]  # of an image of an index, for messages: its file or row

    def pixels(self, index: int, size: int) -> torch.Tensor:
        """Image `index` as uint8 [C, size, size]; C is 1 for a grey image, else 3.

        Raises:
            DataError: the image cannot be decoded.
        """
        image = self._decoded(index)
        if image.size != (size, size):
            # The shorter side becomes `size`, what sticks out on the longer one is cut off evenly.
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return _tensor(image)

    def whole(self, index: int) -> torch.Tensor:
        """Image `index` in its own size, uint8 [C, H, W].

        Raises:
            DataError: the image cannot be decoded.
        """
        return _tensor(self._decoded(index))

    def _decoded(self, index: int) -> Image.Image:
        try:
            return readable(self.read(index))
        except Exception as error:  # PIL's decoders raise a dozen unrelated types
            raise DataError(
                f"{self.source}: image {index} ({self.place(index)}) cannot be read "
                f"({type(error).__name__}: {error}). Fetch or save it again, or remove it."
            ) from error


def _tensor(image: Image.Image) -> torch.Tensor:
    array = np.array(image)  # a copy: PIL's own buffer is read-only
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


def load_images(source: str, part: Part, root: Path) -> Images:
    """The training or test images of `source`; `root` is the repository root.

    Raises:
        DataError: the source is missing, damaged, cannot be fetched, or holds no labelled images.
    """
    check_images(source, root)
    kind, _, name = source.partition(":")
    load = {
        "vendored": _vendored,
        "hub": _hub,
        "torchvision": _torchvision,
        "path": _tree,
    }[kind]
    images = load(source, name, part, root)
    _check_labels(images)
    return images


def _check_labels(images: Images) -> None:
    """Every image has one of the classes."""
    wrong = (images.labels < 0) | (images.labels >= len(images.classes))
    if wrong.any():
        index = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"{images.source}: image {index} ({images.place(index)}) has the label "
            f"{int(images.labels[index])}, which is none of the {len(images.classes)} classes. "
            "Correct it, or remove the image."
        )


def _vendored(source: str, name: str, part: Part, root: Path) -> Images:
    import pyarrow.parquet as pq
    from datasets import Dataset

    # Not load_dataset: that would leave a second copy in the user's cache.
    table = pq.read_table(vendored_file(name, f"{part}.parquet", root))
    return _from_rows(source, part, Dataset(table))


def _hub(source: str, name: str, part: Part, root: Path) -> Images:
    from datasets import load_dataset

    name, _, revision = name.partition("@")
    local = (root / name).is_dir()
    try:
        splits = load_dataset(str(root / name) if local else name, revision=revision or None)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise DataError(
            f"{source}: the dataset cannot be loaded ({type(error).__name__}: {error}). Check the "
            "name, the network and, for a gated set, `hf auth login`; or fetch it elsewhere and "
            "give its folder as hub:FOLDER."
        ) from error
    for split in ("train",) if part == "train" else TEST_NAMES:
        if split in splits:
            images = _from_rows(source, split, splits[split])
            if len(images.labels) and images.labels.max() >= 0:  # withheld labels are -1
                return images
    raise DataError(f"{source}: no labelled {part} split among {', '.join(splits)}.")


def _from_rows(source: str, split: str, rows) -> Images:
    """A `datasets.Dataset` with an image column and (the first, if several) a ClassLabel column.

    Raises:
        DataError: it has other columns, or a row without an image or a label.
    """
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    image = [name for name, kind in rows.features.items() if isinstance(kind, ImageFeature)]
    label = [name for name, kind in rows.features.items() if isinstance(kind, ClassLabel)]
    if not image or not label:
        columns = ", ".join(
            f"{name} ({type(kind).__name__})" for name, kind in rows.features.items()
        )
        raise DataError(
            f"{source}: an image and a class label column are needed; the columns are {columns}."
        )
    for column in (image[0], label[0]):
        _check_filled(f"{source}, split {split}", column, rows.data.column(column))
    labels = torch.tensor(rows[label[0]][:], dtype=torch.int64)
    read = partial(_decode, rows.features[image[0]], rows.data.column(image[0]))
    place = f"split {split}, row {{}} from 0".format
    return Images(source, labels, list(rows.features[label[0]].names), read, place)


def _check_filled(where: str, name: str, column) -> None:
    if column.null_count:
        row = next(i for i, value in enumerate(column) if not value.is_valid)
        raise DataError(
            f"{where}: row {row} (from 0) has no {name}. Save a copy without such rows, and give "
            "its folder as hub:FOLDER."
        )


def _decode(feature, column, index: int) -> Image.Image:
    """What rows[index]["image"] gives, at a third of the time."""
    return feature.decode_example(column[index].as_py())


def _torchvision(source: str, name: str, part: Part, root: Path) -> Images:
    from torchvision import datasets

    cls = getattr(datasets, name, None)
    if not isinstance(cls, type):
        raise DataError(f"{source}: torchvision.datasets has no class {name}. Mind the capitals.")
    try:
        data = _construct(cls, part, root / "resources" / "downloads")
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: the dataset cannot be loaded ({error}). Check the network, or put the "
            f"files where torchvision expects them below {root / 'resources' / 'downloads'}."
        ) from error
    found = [getattr(data, a) for a in ("targets", "labels", "_labels") if hasattr(data, a)]
    if not found:
        raise DataError(f"{source}: {name} has no class labels; choose a classification set.")
    labels = torch.as_tensor(found[0], dtype=torch.int64)
    names = getattr(data, "classes", range(int(labels.max()) + 1))
    # ImageNet's classes are tuples of synonyms.
    classes = [", ".join(n) if isinstance(n, tuple) else str(n) for n in names]
    return Images(source, labels, classes, partial(_first, data), f"{part} images, from 0".format)


def _construct(cls, part: Part, folder: Path):
    """torchvision names the part in two ways: train=True or split="train"."""
    parameters = inspect.signature(cls).parameters
    download = {"download": True} if "download" in parameters else {}
    if "train" in parameters:
        return cls(folder, train=part == "train", **download)
    *others, last = ("train",) if part == "train" else TEST_NAMES
    for split in others:
        with suppress(ValueError):  # the class knows no split of this name
            return cls(folder, split=split, **download)
    return cls(folder, split=last, **download)


def _tree(source: str, name: str, part: Part, root: Path) -> Images:
    from torchvision.datasets import ImageFolder

    folder = root / name / "train" if part == "train" else find_test_folder(root / name)
    try:
        data = ImageFolder(folder)
    except OSError as error:
        raise DataError(f"{source}: {error}. Put images into every class folder.") from error
    labels = torch.tensor(data.targets, dtype=torch.int64)
    # One array, for worker processes would copy a list of a million texts by counting its readers.
    files = np.array([os.fsencode(file) for file, _label in data.samples])
    read, place = partial(_open, files), partial(_file, files)
    return Images(source, labels, data.classes, read, place)


def _open(files: np.ndarray, index: int) -> Image.Image:
    return Image.open(_file(files, index))


def _file(files: np.ndarray, index: int) -> str:
    return os.fsdecode(files[index])


def _first(data, index: int) -> Image.Image:
    return data[index][0]
