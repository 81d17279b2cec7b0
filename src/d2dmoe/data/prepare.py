"""Split a dataset once, in the same way for every seed, method and stage that will read it.

Validation images come out of the training set, equally many of each class; test images are the
source's own. The split depends on the source and a split seed only, never on a training seed.
"""

import json
from pathlib import Path

import torch

from d2dmoe.config.data import DataConfig
from d2dmoe.data.sources import Images, load_images
from d2dmoe.errors import ConfigError, DataError
from d2dmoe.files import sha256, write_atomically
from d2dmoe.tensors import save_tensors


def prepare(cfg: DataConfig, root: Path, folder: Path, seed: int = 0) -> None:
    """Write train, validation and test.safetensors and dataset.json into `folder`.

    With `cfg.in_memory` a split holds images, uint8 [N, C, image_size, image_size] (C is 1 if all
    are grey, else 3); without it, indices into the source, int64 [N]. Both hold labels, int64 [N].
    The same set, config and seed give the same bytes.

    Args:
        cfg: the dataset and its sizes.
        root: the repository root, where resources/ lies.
        folder: where to write; dataset.json comes last, when all else is there.
        seed: of the choice of validation images; not a training seed.

    Raises:
        DataError: the source is missing, damaged or of another form.
        ConfigError: `cfg.validation` does not fit the classes.
    """
    train, test = load_images(cfg.source, "train", root), load_images(cfg.source, "test", root)
    if train.classes != test.classes:
        raise DataError(
            f"{cfg.source}: the training and test images have different classes "
            f"({len(train.classes)} and {len(test.classes)}). Make their names agree."
        )
    held_out = choose_validation(train.labels, cfg.validation, len(train.classes), seed)
    kept = torch.ones(len(train.labels), dtype=torch.bool)
    kept[held_out] = False
    kept = kept.nonzero()[:, 0]
    parts = {
        "train": (train, kept[first_balanced(train.labels[kept], cfg.max_train)]),
        "validation": (train, held_out),
        "test": (test, first_balanced(test.labels, cfg.max_test)),
    }
    for name, (images, indices) in parts.items():
        save_tensors(folder / f"{name}.safetensors", _tensors(images, indices, cfg))
    sizes = {name: len(indices) for name, (_, indices) in parts.items()}
    _write_description(cfg, train.classes, sizes, folder)


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
            f"Allowed: multiples of {classes} up to {max(smallest - 1, 0) * classes}."
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


def _tensors(images: Images, indices: torch.Tensor, cfg: DataConfig) -> dict[str, torch.Tensor]:
    labels = images.labels[indices]
    if not cfg.in_memory:
        return {"indices": indices, "labels": labels}
    pixels = [images.pixels(i, cfg.image_size) for i in indices.tolist()]
    channels = max(p.shape[0] for p in pixels)  # grey only if all are
    return {"images": torch.stack([p.expand(channels, -1, -1) for p in pixels]), "labels": labels}


def _write_description(
    cfg: DataConfig, classes: list[str], sizes: dict[str, int], folder: Path
) -> None:
    described = {
        "source": cfg.source,
        "image_size": cfg.image_size,
        "mean": cfg.mean,
        "std": cfg.std,
        "in_memory": cfg.in_memory,
        "classes": classes,
        "sizes": sizes,
        "sha256": {name: sha256(folder / f"{name}.safetensors") for name in sizes},
    }
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / "dataset.json", lambda path: path.write_text(text))
