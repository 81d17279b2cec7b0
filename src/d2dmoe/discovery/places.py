"""Where an FFN can stand in a model for the maps that it takes over."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.discovery.maps import last
from d2dmoe.discovery.probe import Flow, Passage, Probe, holders
from d2dmoe.discovery.structure import Candidate


@dataclass(frozen=True)
class Place:
    """Where an FFN goes, and what it makes superfluous elsewhere."""

    name: str  # of the module that it replaces
    whole: bool  # whether that module is all of the FFN
    bypassed: tuple[str, ...] = ()  # what must become an identity: maps, activation, dropouts
    dropout: float = 0.0
    hidden_dropout: float = 0.0


def place_of(model: nn.Module, candidate: Candidate, probe: Probe) -> Place | str:
    """The place, or why there is none: the whole module that is the FFN; else the one that makes
    the hidden vector; else the first map's, while an activation elsewhere becomes an identity."""
    flows = probe.flows[candidate]
    for name in holders(candidate):
        passages = [_with_last(passage, candidate.features) for passage in probe.around[name]]
        takes_z = len(passages) == len(flows) and all(
            passage.z is not None and same(passage.z, flow.z)
            for passage, flow in zip(passages, flows, strict=True)
        )
        if not takes_z or not _holds_nothing_else(model, name, candidate):
            continue
        if all(_gives(p, f.y) for p, f in _pairs(passages, flows)):
            if not _rate(probe, passages[0].start, flows[0].start):
                return _whole(name, passages[0], flows[0], probe)
        elif all(_gives(p, f.hidden) for p, f in _pairs(passages, flows)):
            return _hidden(model, name, candidate, passages[0], flows[0], probe)
    if candidate.gated:
        return (
            "it is gated, and a larger forward applies its activation, which cannot be replaced: "
            "make its maps a module of their own that takes the input and gives the output"
        )
    return _first_map(model, candidate, flows)


def _with_last(passage: Passage, features: int) -> Passage:
    """A passage whose vectors are the last dimension, as a flow's are."""
    z, out = (x if x is None else last(x, features) for x in (passage.z, passage.out))
    return passage._replace(z=z, out=out)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same vectors in the same order."""
    if one.numel() != other.numel() or one.shape[-1:] != other.shape[-1:]:
        return False
    return torch.equal(one.reshape(other.shape), other.to(one.dtype))


def _pairs(passages: list[Passage], flows: list[Flow]) -> Iterator[tuple[Passage, Flow]]:
    return zip(passages, flows, strict=True)


def _gives(passage: Passage, out: Tensor | None) -> bool:
    """Whether a module made this of its input, token by token."""
    if passage.out is None or passage.z is None or out is None:
        return False
    token_wise = passage.out.shape[:-1] == passage.z.shape[:-1]
    return token_wise and passage.out.dtype == out.dtype and same(passage.out, out)


def _holds_nothing_else(model: nn.Module, name: str, candidate: Candidate) -> bool:
    """Whether all parameters and buffers of a module are those of the candidate's maps."""
    maps = (model.get_submodule(map_name) for map_name in (*candidate.first, candidate.down))
    known = {id(tensor) for module in maps for tensor in _held(module)}
    inside = _held(model.get_submodule(name))
    missing = [n for n in candidate.first if not f"{n}.".startswith(f"{name}.")]
    return not missing and all(id(tensor) in known for tensor in inside)


def _held(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _rate(probe: Probe, start: int, end: int) -> float:
    """The rate of all dropouts between two times together."""
    return _together(rate for time, rate in probe.dropouts if start < time < end)


def _together(rates: Iterable[float]) -> float:
    """Of dropouts one after the other."""
    return reduce(lambda p, q: p + q - p * q, rates, 0.0)


def _whole(name: str, passage: Passage, flow: Flow, probe: Probe) -> Place:
    return Place(
        name,
        whole=True,
        dropout=_rate(probe, flow.down, passage.end),
        hidden_dropout=_rate(probe, flow.start, flow.down),
    )


def _hidden(
    model: nn.Module, name: str, candidate: Candidate, passage: Passage, flow: Flow, probe: Probe
) -> Place:
    later = {p.name: _dropout(model, p.name) for p in flow.between if p.start > passage.end}
    dropouts = {n: rate for n, rate in later.items() if rate is not None}
    inside = _rate(probe, flow.start, passage.end)
    rate = _together([inside, *dropouts.values()])
    return Place(name, False, (*dropouts, candidate.down), hidden_dropout=rate)


def _first_map(model: nn.Module, candidate: Candidate, flows: list[Flow]) -> Place | str:
    flow = flows[0]
    between = [_with_last(passage, candidate.features) for passage in flow.between]
    activations = [
        passage.name
        for passage in between
        if passage.z is not None and same(passage.z, flow.pre[0]) and _gives(passage, flow.hidden)
    ] or _functions(model, candidate, flow)
    if not activations:
        return (
            "its activation is a function that a larger forward calls, which cannot be replaced: "
            "make it a module or an attribute of the block (self.act = nn.GELU())"
        )
    rates = {p.name: _dropout(model, p.name) for p in flow.between}
    dropouts = {n: rate for n, rate in rates.items() if rate is not None}
    rate = _together(dropouts.values())
    bypassed = (activations[-1], *dropouts, candidate.down)
    return Place(candidate.first[0], False, bypassed, hidden_dropout=rate)


def _dropout(model: nn.Module, name: str) -> float | None:
    module = model.get_submodule(name)
    return module.p if isinstance(module, nn.Dropout) else None


def _functions(model: nn.Module, candidate: Candidate, flow: Flow) -> list[str]:
    """Plain attributes of the modules that hold the maps which are the activation."""
    found = []
    for holder in {name.rpartition(".")[0]: None for name in holders(candidate)}:
        for key, value in vars(model.get_submodule(holder)).items():
            if callable(value) and _computes(value, flow):
                found.append(f"{holder}.{key}".lstrip("."))
    return found


def _computes(function: Callable[[Tensor], Any], flow: Flow) -> bool:
    """Whether a function makes the hidden vector of the pre-activations."""
    assert flow.hidden is not None
    try:
        out = function(flow.pre[0].clone())
    except Exception:  # of any kind: it was made for something else
        return False
    return isinstance(out, Tensor) and same(out, flow.hidden)
