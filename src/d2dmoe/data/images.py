"""Split a set of images: which ones train, validate and test, and what is stored of them."""

from pathlib import Path
from typing import Any

import torch

from d2dmoe.config.data import ImagesConfig
from d2dmoe.data.image_sources import Images, load_images
from d2dmoe.errors import ConfigError, DataError


def prepare_images(
    cfg: ImagesConfig, root: Path, seed: int
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The tensors of each split, and the description of the set.

    With `cfg.in_memory` a split holds images, uint8 [N, C, image_size, image_size] (C is 1 if all
    are grey, else 3); without it, indices into the source, int64 [N]. Both hold labels, int64 [N].

    Raises:
        DataError: the source is missing, damaged or of another form.
        ConfigError: `cfg.validation` does not fit the classes.
    """
    train, test = load_images(cfg.source, "train", root), load_images(cfg.source, "test", root)
    if train.classes != test.classes:
        differing = sorted({*train.classes} ^ {*test.classes}) or train.classes
        raise DataError(
            f"{cfg.source}: the training and test images have different classes "
            f"({len(train.classes)} and {len(test.classes)}; {differing[0]!a} is not in both, or "
            "in another place). Make their names agree."
        )
    if len(train.labels.unique()) < 2:
        raise DataError(
            f"{cfg.source}: all {len(train.labels)} training images are of one class; at least "
            "two classes are needed."
        )
    count = cfg.validation or tenth(train.labels, len(train.classes))
    held_out = choose_validation(train.labels, count, len(train.classes), seed)
    kept = torch.ones(len(train.labels), dtype=torch.bool)
    kept[held_out] = False
    kept = kept.nonzero()[:, 0]
    parts = {
        "train": (train, kept[first_balanced(train.labels[kept], cfg.max_train)]),
        "validation": (train, held_out),
        "test": (test, first_balanced(test.labels, cfg.max_test)),
    }
    about = {
        "image_size": cfg.image_size,
        "mean": cfg.mean,
        "std": cfg.std,
        "in_memory": cfg.in_memory,
        "classes": train.classes,
        "sizes": {name: len(indices) for name, (_, indices) in parts.items()},
    }
    splits = {name: _tensors(images, indices, cfg) for name, (images, indices) in parts.items()}
    return splits, about


def tenth(labels: torch.Tensor, classes: int) -> int:
    """A tenth of the images, or fewer: in equal shares of the classes, of each at least one and at
    most half of the smallest. `labels` is int64 [N]."""
    smallest = int(labels.bincount(minlength=classes).min())
    return max(1, min(len(labels) // 10 // classes, smallest // 2)) * classes


def choose_validation(labels: torch.Tensor, count: int, classes: int, seed: int) -> torch.Tensor:
    """Indices, ascending, of `count` images chosen at random, equally many of each class.

    Args:
        labels: int64 [N].
        count: how many in all; a multiple of `classes`.
        classes: number of classes.
        seed: of the choice.

    Raises:
        ConfigError: `count` is no multiple of `classes`, or would leave a class without images.
    """
    each = count // classes
    smallest = int(labels.bincount(minlength=classes).min())
    if count % classes or each >= smallest:
        raise ConfigError(
            f"validation: {count} images cannot be taken from {classes} classes in equal shares. "
            f"Allowed: multiples of {classes} up to {max(smallest - 1, 0) * classes}; the smallest "
            f"class has {smallest} images."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    return order[first_balanced(labels[order], count)].sort().values


def first_balanced(labels: torch.Tensor, count: int | None) -> torch.Tensor:
    """Indices, ascending, of the first `count` images (None: all), as evenly by class as can be.

    `labels` is int64 [N]. A class with fewer images than its share gives all that it has.
    """
    if count is None:
        return torch.arange(len(labels))
    classes = labels.unique()
    shares = torch.full_like(classes, count // len(classes))
    shares[: count % len(classes)] += 1
    chosen = [(labels == c).nonzero()[:n, 0] for c, n in zip(classes, shares, strict=True)]
    return torch.cat(chosen).sort().values


def _tensors(images: Images, indices: torch.Tensor, cfg: ImagesConfig) -> dict[str, torch.Tensor]:
    labels = images.labels[indices]
    if not cfg.in_memory:
        return {"indices": indices, "labels": labels}
    pixels = [images.pixels(i, cfg.image_size) for i in indices.tolist()]
    channels = max(p.shape[0] for p in pixels)  # grey only if all are
    return {"images": torch.stack([p.expand(channels, -1, -1) for p in pixels]), "labels": labels}
