"""Converting a model in memory: its FFNs become mixtures of experts."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from d2dmoe.attention import ROLES
from d2dmoe.discovery.examples import example_for
from d2dmoe.discovery.ffns import adopt_ffns
from d2dmoe.discovery.maps import SHARED, shared_with
from d2dmoe.discovery.refusals import check
from d2dmoe.errors import ConfigError, ModelError, whole
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE, split_ffn
from d2dmoe.registration import attach
from d2dmoe.surgery import find, put

EXPERTS = 64  # neurons of an expert are about d_ff / EXPERTS where nothing is asked for
STORED = (torch.int8, torch.uint8, torch.int32)  # of quantised weights
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SMALLEST = 16  # neurons of an expert: GPU kernels take no fewer


def nothing_found(model: nn.Module, refused: dict[str, str]) -> ModelError:
    """The error for a model in which there is nothing to convert."""
    name = type(model).__name__
    if not refused and (quantised := next(_quantised(model), None)):
        return ModelError(
            f"{name} has no feed-forward block of floats: {quantised} and others are quantised. "
            "Convert the model before that"
        )
    if not refused:
        return ModelError(
            f"{name} has no feed-forward block: nowhere do two linear maps with an activation, or "
            "three with a gate, follow each other from a width back to it"
        )
    first, reason = next(iter(refused.items()))
    others = f"; and {len(refused) - 1} more" if len(refused) > 1 else ""
    return ModelError(f"no feed-forward block of {name} fits. {first}: {reason}{others}")


def _quantised(model: nn.Module) -> Iterator[str]:
    """Modules, by name, that hold matrices of integers, or weights that torch has packed."""
    for name, module in model.named_modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        integers = any(x.ndim > 1 and x.dtype in STORED for x in held)
        if integers or hasattr(module, "_packed_params"):
            yield name


def convert(
    model: nn.Module,
    expert_size: int | None = None,
    *,
    attention: Sequence[str] = (),
    num_experts: int | None = None,
    method: str = "kmeans",
    seed: int = 0,
    example: Any = None,
) -> nn.Module:
    """Split the FFNs of a model, in place, into experts (paper section 3.2); returns the model.

    Every expert runs until the model has routers, so its outputs stay as they were, up to the order
    of summation.

    Args:
        model: any Transformer whose FFNs can be found, of any dtype and on any device.
        expert_size: neurons of an expert; must divide d_ff of every layer. None: the divisor of
            d_ff next to d_ff / 64, at least 16.
        attention: roles of attention projections, among q, k, v and o, that are to be split too;
            they must be MLPs, as `imitate_projections` makes them.
        num_experts: of each layer, in place of `expert_size`.
        method: how neurons are grouped: `kmeans` (the paper's), `random` or `contiguous`.
        seed: of the clustering.
        example: what the model is called with to find its FFNs; None: taken from the model.

    Raises:
        ModelError: nothing can be converted, or a size does not fit; nothing is changed then.
        UnknownName: there is no such method.
    """
    check(model)
    check_roles(attention)
    _check_there(model, attention)
    with hooks_followed(model):
        _convert(model, expert_size, attention, num_experts, method, seed, example)
    return model


def _convert(
    model: nn.Module,
    expert_size: int | None,
    attention: Sequence[str],
    num_experts: int | None,
    method: str,
    seed: int,
    example: Any,
) -> None:
    with adopted(model, example):
        chosen = [(n, f) for n, f in find(model, FFN).items() if f.role in ("ffn", *attention)]
        if not chosen:
            raise ModelError(f"{type(model).__name__} is converted already")
        for name, ffn in chosen:
            if (other := shared_with(model, [ffn])) is not None:
                raise ModelError(f"{name}: {SHARED.format(other)}")
        counts = [_num_experts(name, ffn, expert_size, num_experts) for name, ffn in chosen]
        neurons = [
            assign_neurons(ffn.activated.weight, count, method, seed)
            for (_, ffn), count in zip(chosen, counts, strict=True)
        ]
    for (name, ffn), groups in zip(chosen, neurons, strict=True):
        put(model, name, split_ffn(ffn, groups).train(ffn.training))


@contextmanager
def hooks_followed(model: nn.Module) -> Iterator[None]:
    """Warn of hooks whose modules the block of code takes out of the model."""
    hooked = {name: m for name, m in model.named_modules() if any(getattr(m, h) for h in HOOKS)}
    yield
    left = set(model.modules())
    gone = [name for name, module in hooked.items() if module not in left]
    if gone:
        others = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        warnings.warn(
            f"the hooks of {gone[0]}{others} are called no more, for other modules stand there "
            "now: register them on these",
            stacklevel=4,
        )


@contextmanager
def adopted(model: nn.Module, example: Any = None) -> Iterator[None]:
    """Make the feed-forward blocks of a model, in place, `ffn.FFN`s, where it has none; everything
    is put back where the block of code fails. From then on one of transformers saves what it is.

    Raises:
        ModelError: the model has none, or cannot be called.
    """
    if any(layer.role == "ffn" for layer in find(model, (FFN, MoE)).values()):
        yield
        return
    check(model)
    adoption = adopt_ffns(model, example_for(model, example))
    if not adoption.done:
        raise nothing_found(model, adoption.refused)
    try:
        yield
    except BaseException:
        adoption.undo()
        raise
    attach(model)


def check_roles(roles: Sequence[str]) -> None:
    """Refuse what is no list of roles of attention projections."""
    listed = isinstance(roles, Iterable) and not isinstance(roles, str)
    if not listed or any(role not in ROLES for role in roles):
        raise ConfigError(f"roles of projections are a list of {', '.join(ROLES)}, not {roles!r}")


def _check_there(model: nn.Module, roles: Sequence[str]) -> None:
    """Refuse roles of projections that are no MLPs yet."""
    there = {layer.role for layer in find(model, (FFN, MoE)).values()}
    missing = [role for role in roles if role not in there]
    if missing:
        raise ModelError(
            f"the attention projections {', '.join(missing)} are linear maps, which have no "
            "neurons to split: let d2dmoe.imitate_projections(model, batches, steps=…) train MLPs "
            "in their place first"
        )


def _num_experts(name: str, ffn: FFN, size: int | None, num_experts: int | None) -> int:
    """Experts of a layer, from what was asked for."""
    if size is not None and num_experts is not None:
        raise ModelError("give expert_size or num_experts, not both")
    if num_experts is not None:
        if ffn.d_ff % whole(num_experts, "num_experts"):
            raise _does_not_divide("num_experts", num_experts, name, ffn.d_ff)
        return num_experts
    if size is None:
        size = default_size(ffn.d_ff)
    if ffn.d_ff % whole(size, "expert_size"):
        raise _does_not_divide("expert_size", size, name, ffn.d_ff)
    return ffn.d_ff // size


def default_size(d_ff: int) -> int:
    """Neurons of an expert: the divisor of d_ff next to d_ff / 64, at least 16."""
    wanted = max(SMALLEST, d_ff / EXPERTS)
    return min(_divisors(d_ff), key=lambda size: (abs(size - wanted), size))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _does_not_divide(option: str, value: int, name: str, d_ff: int) -> ModelError:
    nearby = sorted(sorted(_divisors(d_ff), key=lambda d: abs(d - value))[:5])
    return ModelError(
        f"{option} = {value} does not divide the {d_ff} hidden neurons of {name}; near it are "
        f"{', '.join(map(str, nearby))}"
    )
