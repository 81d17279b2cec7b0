"""Figure 8b: where in an image the compute goes (claim C7).

Beside each image, the share of experts that each patch's token executes is laid over the image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from d2dmoe.errors import UserError
from d2dmoe.figures import style

COLOURS = "viridis"  # perceptually uniform, and readable without colour
OPACITY = 0.75  # of the map over the image


@style.styled
def draw(load_maps: Mapping[str, np.ndarray], dataset: Mapping[str, Any]) -> Figure:
    """Images and their load maps, in pairs, on one colour scale.

    Args:
        load_maps: images, uint8 [N, 3, H, W]; loads, float [N, grid, grid], the share (0 to 1) of
            experts that the patch's token executes, mean over layers; labels, int [N].
        dataset: the dataset's description, with `classes`: names by label.

    Raises:
        UserError: there are no images.
    """
    images, loads = load_maps["images"], 100 * load_maps["loads"]
    if not len(images):
        raise UserError("no images to draw load maps of: set figures.load_maps.images above 0")
    pairs = min(len(images), 2 if len(images) <= 8 else 3)  # a line
    lines = -(-len(images) // pairs)
    side = style.WIDTH / (2 * pairs)  # inches of an image
    figure = Figure(figsize=(style.WIDTH, lines * (side + 0.08) + 0.6), layout="constrained")
    panels = figure.subplots(lines, 2 * pairs, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    limits = {"vmin": float(loads.min()), "vmax": float(loads.max())}
    for index, (axes, beside) in enumerate(panels.reshape(-1, 2)[: len(images)]):
        pixels = images[index].transpose(1, 2, 0)  # [H, W, 3]
        axes.imshow(pixels)
        name = dataset["classes"][int(load_maps["labels"][index])]
        axes.set_title(name, fontsize=7, pad=2, parse_math=False)
        scale = _overlay(beside, pixels, loads[index], limits)
    bar: Any = figure.colorbar(scale, ax=panels, location="bottom", aspect=40, shrink=0.9, pad=0.02)
    bar.solids.set_alpha(1)
    bar.set_label("experts executed by the patch's token, %")
    return figure


def _overlay(
    axes: Axes, pixels: np.ndarray, load: np.ndarray, limits: Mapping[str, Any]
) -> AxesImage:
    """The map [grid, grid] over the grey image [H, W, 3]; each patch covers its own pixels."""
    height, width, _ = pixels.shape
    grey = pixels @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    edges = (-0.5, width - 0.5, height - 0.5, -0.5)
    return axes.imshow(load, cmap=COLOURS, alpha=OPACITY, extent=edges, **limits)
