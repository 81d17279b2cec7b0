"""Random changes of training images, drawn for a whole batch from a given generator alone.

Each batch's generator is seeded by its position, so a resumed run, or any number of processes that
deal the batch out, has the same images. Images may be on any device; generators stay on the CPU.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from d2dmoe.config.augment import AugmentConfig

Changes = dict[str, torch.Tensor]  # random numbers by the change that they are for, each [B, ...]
Box = tuple[int, int, int, int]  # top, left, height, width


def draw_changes(cfg: AugmentConfig, count: int, generator: torch.Generator) -> Changes:
    """The random numbers of a batch of `count` images, for the changes that `cfg` asks for."""
    drawn: Changes = {}
    if cfg.random_resized_crop:
        drawn["crop"] = torch.rand(4, count, generator=generator, dtype=torch.float64).T
    if cfg.flip:
        drawn["flip"] = torch.rand(count, generator=generator) < 0.5
    if cfg.crop_padding:
        shape = (2, count)
        drawn["shift"] = torch.randint(2 * cfg.crop_padding + 1, shape, generator=generator).T
    return drawn


def flip_and_shift(images: torch.Tensor, drawn: Changes, padding: int) -> torch.Tensor:
    """Each image of [B, 3, H, W] mirrored and shifted as was drawn for it; the shape stays."""
    if "flip" in drawn:
        flipped = drawn["flip"].to(images.device)
        images = images.clone()
        images[flipped] = images[flipped].flip(3)
    if "shift" in drawn:
        images = _shifted(images, drawn["shift"], padding)
    return images


def crop_box(drawn: torch.Tensor, height: int, width: int) -> Box:
    """The box of torchvision's RandomResizedCrop, but one that sticks out is trimmed instead of
    redrawn; `drawn` is what `draw_changes` drew for an image, float64 [4] in [0, 1)."""
    area, ratio, top, left = drawn.tolist()
    pixels = (0.08 + 0.92 * area) * height * width
    ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))  # width / height
    rows = min(max(round(math.sqrt(pixels / ratio)), 1), height)
    columns = min(max(round(math.sqrt(pixels * ratio)), 1), width)
    return int(top * (height - rows + 1)), int(left * (width - columns + 1)), rows, columns


def resized_crop(image: torch.Tensor, drawn: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The box of an image, uint8 [C, H, W], that was drawn for it, resized to (height, width)."""
    top, left, rows, columns = crop_box(drawn, *image.shape[-2:])
    box = image[None, :, top : top + rows, left : left + columns]
    return F.interpolate(box, list(size), mode="bilinear", antialias=True)[0]


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [B, 3, H, W] as float32, less the mean and over the deviation of each channel."""
    shift, scale = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return (images.float() / 255 - shift) / scale


def mix(
    images: torch.Tensor,
    targets: torch.Tensor,
    mixup_alpha: float,
    cutmix_alpha: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """MixUp (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of each image with its predecessor.

    As torchvision.transforms.v2 defines them: one λ ~ Beta(α, α) and one box for the whole batch.
    If both alphas are above 0, either is chosen with probability 1/2. A part of a batch is mixed as
    it would be in the whole.

    Args:
        images: float [1 + B, C, H, W], in shuffled order; the first is there for its successor.
        targets: class probabilities, float [1 + B, classes].
        mixup_alpha: α of MixUp, 0 for none.
        cutmix_alpha: α of CutMix, 0 for none; one of both is above 0.
        generator: of all random draws.

    Returns:
        Images, float [B, C, H, W], and targets, float [B, classes].
    """
    # torch has no public Beta that takes a generator, numpy has.
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    own, other = images[1:], images[:-1]
    if mixup_alpha and (not cutmix_alpha or rng.random() < 0.5):
        kept = rng.beta(mixup_alpha, mixup_alpha)
        mixed = own * kept + other * (1 - kept)
    else:
        height, width = images.shape[-2:]
        rows, columns = _box(rng.beta(cutmix_alpha, cutmix_alpha), height, width, rng)
        mixed = own.clone()
        mixed[:, :, rows, columns] = other[:, :, rows, columns]
        cut = (rows.stop - rows.start) * (columns.stop - columns.start)
        kept = 1 - cut / (height * width)
    return mixed, targets[1:] * kept + targets[:-1] * (1 - kept)


def _box(kept: float, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A box of 1 - `kept` of the area around a random pixel, cut off at the borders."""
    half = 0.5 * math.sqrt(1 - kept)

    def span(size: int) -> slice:
        centre, reach = int(rng.integers(size)), int(half * size)
        return slice(max(centre - reach, 0), min(centre + reach, size))

    return span(height), span(width)


def _shifted(images: torch.Tensor, offsets: torch.Tensor, padding: int) -> torch.Tensor:
    """Crops of the padded images from int64 [B, 2] offsets on, rows and columns."""
    count, _, height, width = images.shape
    top, left = offsets.T.to(images.device)
    padded = F.pad(images, (padding,) * 4)
    # All crops as a view, [B, C, 2 padding + 1, 2 padding + 1, H, W], of which one each is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]
