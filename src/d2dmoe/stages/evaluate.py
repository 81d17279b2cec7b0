"""Stage 5: quality and cost at every operating point, and where in an image the compute goes."""

from pathlib import Path

import torch
from torch import Tensor, nn

from d2dmoe.conversion import load_model
from d2dmoe.data import ImageSplit, open_split
from d2dmoe.evaluate import batches_of, evaluate_dense, evaluate_routed
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.surgery import find

FOREGROUND = 25  # of 255; a darker pixel is background
MEASURED = 500  # images whose patches are tabulated; of these the first few are drawn


def evaluate_dense_model(
    model_path: Path, data: Path, split: str, batch_size: int, run: Run
) -> list[dict]:
    """The one operating point of a saved model without routers; see `evaluate.evaluate_dense`.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    return evaluate_dense(model.to(run.device), open_split(data, split), batch_size, run.device)


def evaluate(
    model_path: Path,
    rule: str,
    values: list[float],
    data: Path,
    split: str,
    batch_size: int,
    run: Run,
) -> tuple[list[dict], list[dict]]:
    """Rows of operating points and of layers of a saved model; see `evaluate.evaluate_routed`.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    samples = open_split(data, split)
    model.to(run.device)
    return evaluate_routed(model, samples, rule, values, batch_size, run.device, run.log_every_s)


def load_maps(
    model_path: Path, rule: str, value: float, drawn: int, data: Path, split: str, run: Run
) -> tuple[dict[str, Tensor], list[dict]]:
    """Executed experts per patch of a split's first images (figure 8b).

    Returns:
        Tensors of the `drawn` first images: images uint8 [N, 3, H, W], labels int64 [N], loads
        float32 [N, grid, grid] (share of executed experts, mean over layers). Rows image, row,
        column, object_share (of the patch's pixels that are not black), load.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    set_selection(model, rule, value)
    samples = open_split(data, split)
    indices = torch.arange(min(MEASURED, len(samples)))
    pixels = samples.pixels(indices)
    loads = _patch_loads(model, samples, len(indices), run)
    grid = loads.shape[-1]
    bright = (pixels.amax(1, keepdim=True) > FOREGROUND).float()  # [N, 1, H, W]
    shares = torch.nn.functional.adaptive_avg_pool2d(bright, grid)[:, 0]  # [N, grid, grid]
    rows = [
        {"image": i, "row": r, "column": c, "object_share": float(shares[i, r, c])}
        | {"load": float(loads[i, r, c])}
        for i in range(len(indices))
        for r in range(grid)
        for c in range(grid)
    ]
    tensors = {"images": pixels, "labels": samples.labels[indices], "loads": loads}
    return {name: t[:drawn] for name, t in tensors.items()}, rows


def _patch_loads(model: nn.Module, samples: ImageSplit, count: int, run: Run) -> Tensor:
    """Share of executed experts of each patch, mean over layers: [count, grid, grid]."""
    num_experts = [moe.num_experts for moe in find(model, MoE).values()]
    loads = []
    with torch.inference_mode(), watch_selections(model) as masks:
        for inputs, _ in batches_of(samples, 500, run.device):
            model(**inputs)
            shares = [m.sum(-1) / n for m, n in zip(masks.values(), num_experts, strict=True)]
            loads.append(torch.stack(shares).mean(0)[:, 1:].cpu())  # without the class token
            if sum(map(len, loads)) >= count:
                break
    patches = torch.cat(loads)[:count]  # [count, grid * grid]
    grid = round(patches.shape[1] ** 0.5)
    return patches.unflatten(1, (grid, grid))
