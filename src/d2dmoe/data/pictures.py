"""Pictures as cameras and programs save them, made what a model can read."""

import numpy as np
from PIL import ExifTags, Image, ImageOps


def readable(image: Image.Image) -> Image.Image:
    """The picture as it was meant to be seen, in mode L or RGB.

    Raises:
        ValueError: the range of its pixels is unknown.
    """
    return _in_eight_bits(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """As a camera meant it to be seen."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """In mode L or RGB; of animations the first picture, without transparency."""
    if image.mode.startswith("I;16"):  # which `convert` would cut off at 255
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 becomes 255
        return Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the range of its 32-bit pixels (mode {image.mode}) is unknown: save it with 8 or 16"
        )
    return image if image.mode == "L" else image.convert("RGB")
