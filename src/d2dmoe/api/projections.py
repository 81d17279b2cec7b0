"""Attention projections into MLPs, in memory: each learns by imitation (paper section 3.5)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.batch import Batch
from d2dmoe.api.batches import as_batches
from d2dmoe.api.convert import check_roles
from d2dmoe.api.fit import FitConfig, Losses, check_number, check_whole, fit
from d2dmoe.attention import (
    ROLES,
    Projection,
    find_projections,
    imitation_loss,
    mlp_width,
    projection_mlp,
)
from d2dmoe.discovery.projections import separate_projections
from d2dmoe.discovery.trace import hooked
from d2dmoe.errors import ConfigError, ModelError
from d2dmoe.ffn import FFN
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.seeding import seed_for
from d2dmoe.sparsity import alpha_at, penalty, watch_activations
from d2dmoe.surgery import in_mode, put


@torch.inference_mode(False)
@torch.enable_grad()
def imitate_projections(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    lr: float = 1e-3,
    maps: Sequence[str] = ROLES,
    factor: float = 1.0,
    multiple: int = 16,
    alpha: float = 0.001,
    example: Any = None,
    batch_size: int = 8,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Replace attention projections of a model, in place, by two-layer ReLU MLPs that imitate them.

    The model is frozen and in eval mode meanwhile, and every MLP sees the inputs and outputs of its
    original in the original model. They learn in float32 and get their original's dtype. `convert`
    then splits them, by `attention=maps`.

    Args:
        model: any Transformer whose projections `inspect` finds.
        batches: see `as_batches`; targets are not needed.
        steps: updates, each on one batch.
        lr: peak learning rate of AdamW, after a warm-up of a tenth of the steps.
        maps: roles of the projections, among q, k, v and o.
        factor: cost of an MLP relative to its projection.
        multiple: hidden widths are rounded to a multiple of it, which sizes of experts divide.
        alpha: the sparsity penalty's full weight, which is reached linearly.
        example: what the model can be called with, to find its projections; None: it is made.
        batch_size: rows of a `datasets.Dataset` in a batch.
        seed: of fresh weights and the order of batches.

    Returns:
        The history, at most 100 rows: step, lr, loss, the means over MLPs of error (mean squared)
        and sparsity (L_s).

    Raises:
        ModelError: of one of these roles no projection can be replaced.
        UserError: an option or a batch is impossible, or the loss is not finite; the projections
            are then still linear.
    """
    cfg = FitConfig(steps, lr, seed)
    _check(maps, factor, multiple, alpha)
    given = as_batches(batches, model, batch_size=batch_size)
    projections = _separated(model, example, maps)
    mlps = _fresh_mlps(projections, factor, multiple, seed)
    trained = nn.ModuleList(mlps.values()).train()
    with (
        _watched(model, projections, mlps) as errors,
        watch_activations(trained) as activations,
        in_mode(model, training=False),
    ):

        def losses(batch: Batch, progress: float) -> Losses:
            errors.clear()
            with torch.no_grad():
                batch.outputs(model)
            error: Any = sum(errors)
            sparsity: Any = sum(penalty("relu_hoyer", [layer]) for layer in activations.values())
            weight = alpha_at("linear", alpha, progress)
            loss = error + weight * sparsity  # sums, for the MLPs share no weights
            return {"loss": loss, "error": error / len(errors), "sparsity": sparsity / len(mlps)}

        history = fit(model, trained, losses, given, cfg, "imitation of attention projections")
    _replace(model, projections, mlps)
    return history


def _check(maps: Sequence[str], factor: float, multiple: int, alpha: float) -> None:
    """Refuse options that are impossible."""
    check_number("factor", factor)
    check_whole("multiple", multiple)
    check_number("alpha", alpha, or_zero=True)
    check_roles(maps)
    if not maps:
        raise ConfigError(f"maps = {maps!r}: give at least one of {', '.join(ROLES)}")


def _fresh_mlps(
    projections: dict[str, Projection], factor: float, multiple: int, seed: int
) -> dict[str, FFN]:
    """An MLP for each projection, in float32, whose weights the seed decides."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_for("projections", seed))
        return {
            name: projection_mlp(p, mlp_width(p, factor, multiple)).float()
            for name, p in projections.items()
        }


def _replace(model: nn.Module, projections: dict[str, Projection], mlps: dict[str, FFN]) -> None:
    """Put the MLPs where the projections were, of their dtype and mode, frozen if they were."""
    for name, mlp in mlps.items():
        weight = projections[name].weight
        mlp.to(weight.dtype).requires_grad_(weight.requires_grad)
        put(model, name, mlp.train(projections[name].training))


def _separated(model: nn.Module, example: Any, maps: Sequence[str]) -> dict[str, Projection]:
    """The model's projections of these roles, by name, as modules that can be replaced.

    Raises:
        ModelError: there is none of a role.
    """
    separate_projections(model, example)
    projections = find_projections(model, maps)
    there = {projection.role for projection in projections.values()}
    missing = [role for role in maps if role not in there]
    if missing or not projections:
        raise ModelError(
            f"{type(model).__name__} has no linear projections {', '.join(missing)} that can be "
            "replaced: inspect(model) lists what was found, and why others are refused"
        )
    return projections


@contextmanager
def _watched(
    model: nn.Module, projections: dict[str, Projection], mlps: dict[str, FFN]
) -> Iterator[list[Tensor]]:
    """A list that gets each MLP's error, on real tokens, whenever its original runs."""
    errors: list[Tensor] = []

    def hook(mlp: FFN) -> Any:
        def see(_projection: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            z, out = (without_padding(x.detach(), real()).float() for x in (args[0], out))
            with torch.enable_grad():
                errors.append(imitation_loss(mlp, z, out))

        return see

    handles = (p.register_forward_hook(hook(mlps[n])) for n, p in projections.items())
    with watch_padding(model) as real, hooked(*handles):
        yield errors
