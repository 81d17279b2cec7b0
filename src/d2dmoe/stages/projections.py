"""Attention projections into MLPs: each learns by imitation of its original (paper section 3.5)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.attention import (
    find_projections,
    imitation_loss,
    mlp_width,
    projection_mlps,
    replace_projections,
)
from d2dmoe.checkpoint import Trained, load_dense_model
from d2dmoe.config.stages import ProjectionsConfig
from d2dmoe.data.splits import Batch
from d2dmoe.ffn import FFN
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.run import Run
from d2dmoe.models.build import separate_projections
from d2dmoe.padding import real_tokens
from d2dmoe.seeding import seed_for
from d2dmoe.sparsity import alpha_at, penalty, watch_activations
from d2dmoe.spec import ModelSpec
from d2dmoe.stages.fitting import fit_part
from d2dmoe.surgery import watch
from d2dmoe.training import Losses


def convert_projections(parent: Path, cfg: ProjectionsConfig, run: Run) -> Trained:
    """Replace the attention projections `cfg.maps` of a saved dense model by MLPs.

    All MLPs are trained in one pass over the data. Each sees the inputs and outputs of its original
    in the original model, and its loss is the mean squared error plus α times the sparsity penalty.
    Memory is bounded by one batch: 4 (d_in + d_out) bytes per token and projection are kept.

    Raises:
        UserError: model, data or disk are not in order, or the training was stopped.
    """
    model, spec = load_dense_model(parent)
    spec.check_new("projections", parent)
    separate_projections(spec.architecture, model).to(run.device).requires_grad_(False)
    widths = _widths(model, cfg)
    torch.manual_seed(seed_for("projections", run.seed))
    mlps = projection_mlps(model, widths, cfg.dropout)
    logger.info("hidden neurons by role: %s", widths)
    trained = nn.ModuleList(mlps.values()).requires_grad_(True).train()
    projections = find_projections(model, cfg.maps)
    with (
        watch(projections, lambda _layer, z, out: (z, out)) as seen,
        watch_activations(trained) as activations,
    ):

        def losses(batch: Batch, progress: float) -> Losses:
            with torch.no_grad():
                model(**batch[0])
            error = _error(mlps, seen, real_tokens(batch[0]))
            sparsity = penalty("relu_hoyer", activations.values())
            alpha = alpha_at("linear", cfg.alpha, progress)
            # A sum, for the MLPs share no weights; the penalty is a mean over them.
            loss = error + alpha * len(mlps) * sparsity
            return {"loss": loss, "error": error / len(mlps), "sparsity": sparsity}

        history = fit_part(trained, losses, cfg, run, "imitation of attention projections")
    replace_projections(model, mlps).requires_grad_(True).eval()
    return model, spec.with_part("projections", widths=widths), history


def rebuild(model: nn.Module, spec: ModelSpec, widths: dict[str, int]) -> nn.Module:
    """MLPs with fresh weights, so wide by role, in place of the attention projections."""
    separate_projections(spec.architecture, model)
    return replace_projections(model, projection_mlps(model, widths))


def _widths(model: nn.Module, cfg: ProjectionsConfig) -> dict[str, int]:
    """Hidden neurons by role; the maps of a role have the same shape in every block."""
    projections = find_projections(model, cfg.maps).values()
    return {p.role: mlp_width(p, cfg.factor, cfg.multiple) for p in projections}


def _error(
    mlps: dict[str, FFN], seen: dict[str, tuple[Tensor, Tensor]], real: Tensor | None
) -> Tensor:
    """Sum over the MLPs of their mean squared errors on real tokens, a scalar."""
    total: Any = 0.0
    for name, mlp in mlps.items():
        z, out = seen[name] if real is None else (x[real] for x in seen[name])
        total = total + imitation_loss(mlp, z, out)
    return total
