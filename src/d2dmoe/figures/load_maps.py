"""Figure 8b: where in an image the compute goes (claim C7).

Beside each image, the share of experts that each patch's token executes, under the image's outline.
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
OUTLINE: dict[str, Any] = {"colors": "white", "linewidths": 0.6}


@style.styled
def draw(
    load_maps: Mapping[str, np.ndarray], dataset: Mapping[str, Any], title: str, point: str
) -> Figure:
    """Images and their load maps, in pairs, on one colour scale.

    Args:
        load_maps: images, uint8 [N, 3, H, W]; loads, float [N, grid, grid], the share (0 to 1) of
            experts that the patch's token executes, mean over layers; labels, int [N].
        dataset: the dataset's description, with `classes`: names by label.
        title: what the figure calls the task.
        point: the model's name and operating point.

    Raises:
        UserError: there are no images.
    """
    images, loads = load_maps["images"], 100 * load_maps["loads"]
    if not len(images):
        raise UserError("no images to draw load maps of: set figures.load_maps.images above 0")
    pairs = min(len(images), 2 if len(images) <= 8 else 3)  # a line
    lines = -(-len(images) // pairs)
    side = style.WIDTH / (2 * pairs)  # inches of an image
    figure = Figure(figsize=(style.WIDTH, lines * (side + 0.08) + 0.9), layout="constrained")
    figure.suptitle(f"Executed experts per patch\n{title}, {point}", fontsize=8)
    panels = figure.subplots(lines, 2 * pairs, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    limits = {"vmin": float(loads.min()), "vmax": float(loads.max())}
    for index, (axes, beside) in enumerate(panels.reshape(-1, 2)[: len(images)]):
        pixels = images[index].transpose(1, 2, 0)  # [H, W, 3]
        axes.imshow(pixels)
        name = dataset["classes"][int(load_maps["labels"][index])]
        axes.set_title(name, fontsize=7, pad=2)
        scale = _overlay(beside, pixels, loads[index], limits)
    bar: Any = figure.colorbar(scale, ax=panels, location="bottom", aspect=40, shrink=0.9, pad=0.02)
    bar.set_label("executed experts (%), mean over layers")
    return figure


def _overlay(
    axes: Axes, pixels: np.ndarray, load: np.ndarray, limits: Mapping[str, Any]
) -> AxesImage:
    """The map [grid, grid], under the outline of the image [H, W, 3]; each patch covers its own
    pixels."""
    height, width, _ = pixels.shape
    grey = pixels @ np.array([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
    edges = (-0.5, width - 0.5, height - 0.5, -0.5)
    scale = axes.imshow(load, cmap=COLOURS, extent=edges, **limits)
    if grey.min() < grey.max():
        axes.contour(grey, [(grey.min() + grey.max()) / 2], **OUTLINE)
    return scale
