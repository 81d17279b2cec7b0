"""Stage 5: quality and cost at every operating point, and where in an image the compute goes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import ImageSplit, open_split
from d2dmoe.evaluation import Measured, MeasureOptions, evaluate_points, evaluate_routed
from d2dmoe.evaluation import evaluate_dense as measure_dense
from d2dmoe.jobs.run import Run
from d2dmoe.moe import MoE, set_selection, watch_selections
from d2dmoe.quality import batches_of
from d2dmoe.surgery import find

FOREGROUND = 25  # of 255; a darker pixel is background
MEASURED = 500  # images whose patches are tabulated; of these the first few are drawn


def evaluate_dense(model_path: Path, _knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The one operating point of a saved model without routers; see `evaluation.evaluate_dense`.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    samples = open_split(run.data, cfg["split"])
    return measure_dense(model.to(run.device), samples, cfg["batch_size"], run.device)


def evaluate(model_path: Path, rule: str, cfg: MeasureOptions, run: Run) -> Measured:
    """The operating points of a saved model; see `evaluation.evaluate_routed`.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    samples = open_split(run.data, cfg["split"])
    how: dict[str, Any] = {"batch_size": cfg["batch_size"], "log_every_s": run.log_every_s}
    return evaluate_routed(model, samples, rule, cfg["values"], device=run.device, **how)


def evaluate_true_norms(model_path: Path, knob: str, cfg: MeasureOptions, run: Run) -> Measured:
    """As `evaluate` with dynamic-k, but each router's scores are the true norms of its experts'
    outputs. It costs as much as before: so good could a router of this size be at best.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    samples = open_split(run.data, cfg["split"])
    scored = ExitStack()

    def set_tau(tau: float) -> None:
        scored.close()
        scored.enter_context(_true_norms(model))  # now, not while the cost is counted
        set_selection(model, "dynamic_k", tau)

    how = (cfg["batch_size"], run.device, run.log_every_s)
    with scored:
        return evaluate_points(model, samples, knob, cfg["values"], set_tau, *how)


@contextmanager
def _true_norms(model: nn.Module) -> Iterator[None]:
    """Routers give the norms of their experts' outputs, whatever they predict."""

    def hook(moe: MoE, _router: nn.Module, inputs: tuple[Tensor], _scores: Tensor) -> Tensor:
        return moe.output_norms(inputs[0])

    moes = find(model, MoE).values()
    hooks = [m.router.register_forward_hook(partial(hook, m)) for m in moes if m.router]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def load_maps(
    model_path: Path, rule: str, cfg: dict[str, Any], run: Run
) -> tuple[dict[str, Tensor], list[dict]]:
    """Executed experts per patch of the first test images (figure 8b).

    Args:
        model_path: a converted ViT.
        rule: its selection rule.
        cfg: `value`, the rule's operating point, and `images`, how many are drawn.
        run: device and data.

    Returns:
        Tensors of the images that are drawn: images uint8 [N, 3, H, W], labels int64 [N], loads
        float32 [N, grid, grid] (share of executed experts, mean over layers). Rows image, row,
        column, object_share (of the patch's pixels that are not black), load.

    Raises:
        UserError: model or data are not in order.
    """
    model, _spec = load_model(model_path)
    model.to(run.device)
    set_selection(model, rule, cfg["value"])
    samples = open_split(run.data, "test")
    assert isinstance(samples, ImageSplit)  # `plan.figures.check_load_maps`
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
    return {name: t[: cfg["images"]] for name, t in tensors.items()}, rows


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
