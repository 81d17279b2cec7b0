"""Which images a task uses and how training varies them: typed, and checked before any job starts.

Nothing heavy is imported here, so that a wrong source is found in the first second of a run.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from d2dmoe.config.base import Strict
from d2dmoe.errors import DataError

FORMS = {
    "vendored": (r"[\w-][\w.-]*", "vendored:NAME (a folder of resources/)"),
    "torchvision": (r"[A-Za-z_]\w*", "torchvision:CLASS (of torchvision.datasets, e.g. CIFAR10)"),
    "hub": (r"[^@]+(@[^@]+)?", "hub:NAME or hub:NAME@REVISION (Hugging Face or a local folder)"),
    "path": (r".+", "path:FOLDER (train/CLASS/*.jpg, and the same in test/ or val/)"),
}
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
TEST_NAMES = ("test", "validation", "val")  # in the order in which they are tried

Positive = Annotated[float, Field(gt=0)]


class DataConfig(Strict):
    """An image classification set: where it comes from and how it is split."""

    source: str = Field(
        description="Where the images come from: " + "; ".join(form for _, form in FORMS.values())
    )
    image_size: int = Field(
        gt=0,
        description="Height and width in pixels; other images are resized on their shorter side "
        "and cropped to the centre",
    )
    validation: int = Field(
        gt=0,
        description="Images held out of the training set, equally many of each class; "
        "all choices are made on these, none on test images",
    )
    mean: list[float] = Field(
        min_length=3, max_length=3, description="Mean of each channel (R, G, B), pixels in 0..1"
    )
    std: list[Positive] = Field(
        min_length=3,
        max_length=3,
        description="Standard deviation of each channel (R, G, B), pixels in 0..1",
    )
    max_train: int | None = Field(
        None, gt=0, description="Train on the first so many images only, class-balanced; for trials"
    )
    max_test: int | None = Field(
        None, gt=0, description="Test on the first so many images only, class-balanced; for trials"
    )
    in_memory: bool = Field(
        True,
        description="Decode every image once and keep the pixels; false (for sets as large as "
        "ImageNet) decodes images each time they are read",
    )

    @field_validator("source")
    @classmethod
    def _has_a_known_form(cls, source: str) -> str:
        kind, _, name = source.partition(":")
        if kind not in FORMS or not re.fullmatch(FORMS[kind][0], name):
            allowed = "; ".join(form for _, form in FORMS.values())
            raise ValueError(f"{source!r} names no dataset. Allowed: {allowed}")
        return source


class AugmentConfig(Strict):
    """Random changes of training images. They act on the image_size square that is stored."""

    flip: bool = Field(False, description="Mirror each image left to right with probability 1/2")
    crop_padding: int = Field(
        0, ge=0, description="Pixels of zero padding on every side before a random crop; 0: no crop"
    )
    random_resized_crop: bool = Field(
        False,
        description="Crop a random 8 % to 100 % of the area at a ratio of 3:4 to 4:3, resized back",
    )


def check_source(source: str, root: Path) -> None:
    """Refuse a source whose local files are not there; `root` is the repository root.

    Cheap: it looks at folders only, opens no file and no connection.

    Raises:
        DataError: a vendored set or a local folder is missing or lacks its splits.
    """
    kind, _, name = source.partition(":")
    if kind == "vendored":
        _check_vendored(name, root / "resources")
    elif kind == "hub":
        _check_hub(name.partition("@")[0], root)
    elif kind == "path":
        _check_tree(root / name)


def find_test_folder(tree: Path) -> Path | None:
    """The folder of an ImageFolder tree that serves as its test set: the first with classes.

    ImageNet's test labels are not public, so its validation images are, as is customary, the test
    set: a test/ without class folders is passed over.
    """
    return next((tree / name for name in TEST_NAMES if _has_classes(tree / name)), None)


def _check_vendored(name: str, resources: Path) -> None:
    if not (resources / name).is_dir():
        known = ", ".join(sorted(p.parent.name for p in resources.glob("*/SHA256SUMS"))) or "none"
        raise DataError(
            f"vendored:{name}: there is no {resources / name}. Vendored sets: {known}. "
            "Correct the source, or restore the folder with `git checkout -- resources`."
        )


def _check_hub(name: str, root: Path) -> None:
    if not HUB_NAME.fullmatch(name) and not (root / name).is_dir():
        raise DataError(
            f"hub:{name}: there is no folder {root / name}, and no dataset of the Hugging Face hub "
            "has such a name. Correct the path, or give a name such as ylecun/mnist."
        )


def _check_tree(tree: Path) -> None:
    if not tree.is_dir():
        raise DataError(f"path:{tree}: there is no such folder. Correct the source.")
    if not _has_classes(tree / "train") or find_test_folder(tree) is None:
        found = ", ".join(sorted(p.name for p in tree.iterdir() if p.is_dir())) or "none"
        raise DataError(
            f"path:{tree} needs train/ and test/ or val/, each with a folder of images per class; "
            f"folders found: {found}. Arrange the images as train/CLASS/*.jpg and val/CLASS/*.jpg."
        )


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and any(p.is_dir() for p in folder.iterdir())
