"""What of a model can be converted: its FFNs and attention projections, and what they cost."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.batches import Batches, as_batches
from d2dmoe.api.convert import nothing_found
from d2dmoe.discovery.examples import example_for
from d2dmoe.discovery.ffns import adopt_ffns
from d2dmoe.discovery.projections import find_projections
from d2dmoe.discovery.refusals import check
from d2dmoe.discovery.trace import Example, hooked, run
from d2dmoe.ffn import FFN, ActivationLayer
from d2dmoe.flops import LayerCost, model_cost
from d2dmoe.moe import MoE
from d2dmoe.padding import watch_padding, without_padding
from d2dmoe.surgery import find, in_mode


@dataclass(frozen=True)
class FoundFFN:
    """A feed-forward block, or a projection that is an MLP already."""

    name: str
    role: str  # ffn, q, k, v or o
    d_model: int
    d_ff: int
    d_out: int
    activation: str
    gated: bool
    num_experts: int | None  # None: it is not converted
    flops: float  # of the example; of all experts
    share: float  # of the model's FLOPs
    firing: float | None = None  # share of the neurons whose pre-activation exceeds the threshold


@dataclass(frozen=True)
class FoundMap:
    """A linear map of an attention."""

    name: str
    role: str  # q, k, v or o; qkv or qkvo: one module has them all
    d_in: int
    d_out: int
    flops: int  # of the example
    share: float  # of the model's FLOPs


@dataclass(frozen=True)
class Inspection:
    """What was found; printed, it is a table."""

    model: str
    flops: float  # of the example, of the dense model
    ffns: tuple[FoundFFN, ...]
    projections: tuple[FoundMap, ...]
    refused: tuple[tuple[str, str], ...]  # names and reasons

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [_ffn_row(ffn) for ffn in self.ffns] + [_map_row(m) for m in self.projections]
        lines = _table(["name", "what", "shape", "activation", "FLOPs", "fires"], rows)
        share = sum(ffn.share for ffn in self.ffns)
        maps = sum(found.share for found in self.projections)
        total = f"{self.model}: {self.flops:.3g} FLOPs; FFNs {share:.1%}, projections {maps:.1%}"
        refused = [f"refused: {name}: {reason}" for name, reason in self.refused]
        return "\n".join([total, "", *lines, *refused])


def inspect(
    model: nn.Module, batches: Iterable[Any] | None = None, *, example: Any = None
) -> Inspection:
    """Find what of a model can be converted; the model stays as it is.

    Args:
        model: any Transformer, converted or not.
        batches: see `as_batches`; with them it is counted which share of the neurons fires, padding
            left out, and FLOPs are those of the first batch.
        example: what the model can be called with, whose FLOPs are counted; None: a batch, or taken
            from the model.

    Raises:
        ModelError: nothing can be converted, or the model cannot be called.
        DataError: a batch does not fit.
    """
    check(model)
    given = None if batches is None else as_batches(batches, model)
    called_with = _example(model, example, given)
    adoption = adopt_ffns(model, called_with)
    try:
        if not find(model, (FFN, MoE)):
            raise nothing_found(model, adoption.refused)
        return _inspection(model, called_with, given, adoption.refused)
    finally:
        adoption.undo()


def _example(model: nn.Module, example: Any, batches: Batches | None) -> Example:
    if example is not None or batches is None:
        return example_for(model, example)
    batch = batches.first()
    with in_mode(model, training=False), torch.no_grad():
        batch.outputs(model)  # or it is refused
    return Example(batch.args, {n: x for n, x in batch.kwargs.items() if n != "labels"})


def _inspection(
    model: nn.Module, example: Example, batches: Batches | None, refused: dict[str, str]
) -> Inspection:
    cost = model_cost(model, example.kwargs, example.args)
    firing = {} if batches is None else _firing(model, batches)
    layers: Any = find(model, (FFN, MoE))
    found = find_projections(model, example)
    problems = {f.name: f.problem for f in found if f.problem}
    return Inspection(
        type(model).__name__,
        cost.dense,
        tuple(_ffn(n, x, cost.layers[n], cost.dense, firing.get(n)) for n, x in layers.items()),
        tuple(
            FoundMap(f.name, f.role, f.d_in, f.d_out, f.flops, f.flops / cost.dense) for f in found
        ),
        tuple((refused | problems).items()),
    )


def _ffn(
    name: str, layer: FFN | MoE, cost: LayerCost, total: float, firing: float | None
) -> FoundFFN:
    return FoundFFN(
        name,
        layer.role,
        layer.d_model,
        layer.d_ff if isinstance(layer, FFN) else layer.num_experts * layer.expert_size,
        layer.d_out,
        layer.activation_name,
        layer.gate is not None,
        layer.num_experts if isinstance(layer, MoE) else None,
        cost.dense,
        cost.dense / total,
        firing,
    )


def _firing(model: nn.Module, batches: Batches) -> dict[str, float]:
    """The share of neurons that fire, of real tokens, by the name of the FFN."""
    fired, seen = dict.fromkeys(find(model, FFN), 0), dict.fromkeys(find(model, FFN), 0)

    def hook(name: str) -> Any:
        def see(layer: ActivationLayer, args: tuple[Tensor], _out: Tensor) -> None:
            pre = without_padding(args[0], real())
            fired[name] += int((pre > layer.record.threshold).sum())
            seen[name] += pre.numel()

        return see

    with watch_padding(model) as real:
        handles = [
            ffn.activation.register_forward_hook(hook(name))
            for name, ffn in find(model, FFN).items()
        ]
        with hooked(*handles):
            for batch in batches:
                run(model, Example(batch.args, batch.kwargs))
    return {name: fired[name] / seen[name] for name in fired if seen[name]}


def _ffn_row(ffn: FoundFFN) -> list[str]:
    kind = "FFN" if ffn.role == "ffn" else f"{ffn.role}, an MLP"
    experts = f", {ffn.num_experts} experts" if ffn.num_experts else ""
    shape = f"{ffn.d_model} → {ffn.d_ff} → {ffn.d_out}"
    fires = "" if ffn.firing is None else f"{ffn.firing:.1%}"
    gated = ", gated" if ffn.gated else ""
    return [ffn.name, kind + experts, shape, ffn.activation + gated, f"{ffn.share:.1%}", fires]


def _map_row(found: FoundMap) -> list[str]:
    shape = f"{found.d_in} → {found.d_out}"
    return [found.name, f"{found.role} of an attention", shape, "", f"{found.share:.1%}", ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, as wide as they need be; empty columns are left out."""
    columns = [c for c in zip(head, *rows, strict=True) if any(c[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]
