"""Random changes of training batches, vectorised, drawn from a given generator alone.

Each step's generator is seeded by its position, so a resumed run continues with the same images.
Images may be on any device; the generator stays on the CPU.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from d2dmoe.config.augment import AugmentConfig


def augment(images: torch.Tensor, cfg: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Each image of uint8 [B, 3, H, W] changed on its own, as `cfg` asks; the shape stays."""
    if cfg.random_resized_crop:
        images = _resized_crop(images, generator)
    if cfg.flip:
        flipped = torch.rand(len(images), generator=generator) < 0.5
        flipped = flipped.to(images.device)
        images = images.clone()
        images[flipped] = images[flipped].flip(3)
    if cfg.crop_padding:
        images = _padded_crop(images, cfg.crop_padding, generator)
    return images


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
    If both alphas are above 0, either is chosen with probability 1/2; if both are 0, nothing
    changes and nothing is drawn.

    Args:
        images: float [B, C, H, W], in shuffled order.
        targets: class probabilities, float [B, classes].
        mixup_alpha: α of MixUp, 0 for none.
        cutmix_alpha: α of CutMix, 0 for none.
        generator: of all random draws.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    # torch has no public Beta that takes a generator, numpy has.
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    if mixup_alpha and (not cutmix_alpha or rng.random() < 0.5):
        kept = rng.beta(mixup_alpha, mixup_alpha)
        images = images * kept + images.roll(1, 0) * (1 - kept)
    else:
        height, width = images.shape[-2:]
        rows, columns = _box(rng.beta(cutmix_alpha, cutmix_alpha), height, width, rng)
        other = images.roll(1, 0)
        images = images.clone()
        images[:, :, rows, columns] = other[:, :, rows, columns]
        cut = (rows.stop - rows.start) * (columns.stop - columns.start)
        kept = 1 - cut / (height * width)
    return images, targets * kept + targets.roll(1, 0) * (1 - kept)


def _box(kept: float, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A box of 1 - `kept` of the area around a random pixel, cut off at the borders."""
    half = 0.5 * math.sqrt(1 - kept)

    def span(size: int) -> slice:
        centre, reach = int(rng.integers(size)), int(half * size)
        return slice(max(centre - reach, 0), min(centre + reach, size))

    return span(height), span(width)


def _padded_crop(images: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count), generator=generator)
    top, left = offsets.to(images.device)
    padded = F.pad(images, (padding,) * 4)
    # All crops as a view, [B, C, 2 padding + 1, 2 padding + 1, H, W], of which one each is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def _resized_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """torchvision's RandomResizedCrop, but a box that sticks out is trimmed instead of redrawn."""
    from torchvision.transforms.v2.functional import resized_crop  # slow to import, seldom used

    count, _, height, width = images.shape
    draws = torch.rand(4, count, generator=generator, dtype=torch.float64)
    area = (0.08 + 0.92 * draws[0]) * height * width
    ratio = torch.exp((2 * draws[1] - 1) * math.log(4 / 3))  # width / height
    heights = (area / ratio).sqrt().round().clamp(1, height)
    widths = (area * ratio).sqrt().round().clamp(1, width)
    tops = (draws[2] * (height - heights + 1)).floor()
    lefts = (draws[3] * (width - widths + 1)).floor()
    boxes = torch.stack([tops, lefts, heights, widths], 1).int().tolist()
    crops = [
        resized_crop(image, *box, [height, width], antialias=True)
        for image, box in zip(images, boxes, strict=True)
    ]
    return torch.stack(crops)
