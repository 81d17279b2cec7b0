"""Which maps of a model form FFNs: by the numbers that run between them.

The input h of a map is the hidden vector of an FFN `W2 act(W1 z)` where h = act(a) for the output a
of a map that ran shortly before, and of a gated one where h = act(g) ⊙ u for two such maps of the
same input, or for the halves of one map's output. Whether that holds for every value, and with
which activation, is left to `probe`.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from d2dmoe.activations import ACTIVATIONS, torch_function
from d2dmoe.discovery.maps import all_maps_of, features_of, last
from d2dmoe.discovery.trace import Example, hooked, only_tensor, run

WINDOW = 8  # maps that may run between an FFN's first and its last: those of a parallel attention
ROWS = 64  # tokens that are compared


@dataclass(frozen=True)
class Candidate:
    """Maps, by their names, that may form an FFN."""

    first: tuple[str, ...]  # W1; gate and up in the order of their calls; or the one map of both
    down: str
    fused: bool = False  # whether the first map's output is gate and up, side by side
    features: int = -1  # the dimension of the vectors that the maps take and give

    @property
    def gated(self) -> bool:
        return self.fused or len(self.first) == 2


class _Call(NamedTuple):
    """A map that ran."""

    name: str
    z: Tensor  # [rows, d_in]
    out: Tensor  # [rows, d_out]
    tokens: int  # of which `rows` are the first
    features: int  # the dimension of its vectors


def candidates(model: nn.Module, example: Example) -> list[Candidate]:
    """Maps that may form FFNs, in the order in which they run."""
    maps = all_maps_of(model)
    recent: deque[_Call] = deque(maxlen=WINDOW)
    found: dict[Candidate, None] = {}  # a set in order

    def see(name: str, args: tuple, kwargs: dict, out: object) -> None:
        z = only_tensor(args, kwargs)
        if z is None or not isinstance(out, Tensor) or not z.is_floating_point() or not z.ndim:
            return
        features = features_of(maps[name])
        z, out = last(z, features), last(out, features)
        call = _Call(name, _rows(z), _rows(out), z[..., 0].numel(), features)
        candidate = _ending_in(call, recent)
        if candidate is not None:
            found[candidate] = None
        recent.append(call)

    def hook(name: str):
        return lambda _module, args, kwargs, out: see(name, args, kwargs, out)

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True) for name, module in maps.items()
    ]
    with hooked(*handles):
        run(model, example)
    return list(found)


def _rows(x: Tensor) -> Tensor:
    """A copy of the first tokens, as activations in place would change them: [rows, d]."""
    return x.detach().reshape(-1, x.shape[-1])[:ROWS].float().clone()


def _ending_in(down: _Call, recent: Iterable[_Call]) -> Candidate | None:
    """The FFN whose last map ran now, after the recent ones."""
    alike = [call for call in recent if call.features == down.features]
    if down.features != -1 and down.out.shape[-1] >= down.z.shape[-1]:
        return None  # of channels that are squeezed, which scale others
    fitting = [
        call
        for call in reversed(alike)
        if call.tokens == down.tokens and call.z.shape[-1] == down.out.shape[-1]
    ]
    for first, fused, hidden in _hidden_vectors(fitting, down.z.shape[-1]):
        if any(_alike(h, down.z) for h in hidden):
            return Candidate(first, down.name, fused, down.features)
    return _by_shape(down, alike)


def _hidden_vectors(
    calls: list[_Call], d_ff: int
) -> Iterator[tuple[tuple[str, ...], bool, Iterator[Tensor]]]:
    """First maps, whether they are fused, and what each activation would make of their outputs."""
    single = [call for call in calls if call.out.shape[-1] == d_ff]
    for call in single:
        yield (call.name,), False, _activated(call.out)
    for call in calls:
        if call.out.shape[-1] == 2 * d_ff:
            yield (call.name,), True, _gated(*call.out.chunk(2, dim=-1))
    for i, second in enumerate(single):
        for first in single[i + 1 :]:
            if torch.equal(first.z, second.z):
                yield (first.name, second.name), False, _gated(first.out, second.out)


def _activated(pre: Tensor) -> Iterator[Tensor]:
    return (torch_function(name)(pre) for name in ACTIVATIONS)


def _gated(one: Tensor, other: Tensor) -> Iterator[Tensor]:
    for hidden in _activated(one):
        yield hidden * other
    for hidden in _activated(other):
        yield hidden * one


def _alike(guess: Tensor, hidden: Tensor) -> bool:
    """Whether the two are about equal; half precision leaves an error of 1 % at most."""
    size = hidden.norm()
    return bool(size > 0) and bool((guess - hidden).norm() <= 0.02 * size)


def _by_shape(down: _Call, recent: list[_Call]) -> Candidate | None:
    """What has the shapes and the order of an FFN, though no known activation links its maps."""
    if not recent or down.out.shape[-1] >= down.z.shape[-1]:
        return None
    newest = recent[-1]
    group = [call for call in recent if call is newest or call.z.equal(newest.z)]
    d_ff = down.z.shape[-1]
    same_rows = all(call.tokens == down.tokens for call in group)
    if not same_rows or newest.z.shape[-1] != down.out.shape[-1] or len(group) > 2:
        return None
    if all(call.out.shape[-1] == d_ff for call in group):
        return Candidate(tuple(call.name for call in group), down.name, features=down.features)
    fused = len(group) == 1 and newest.out.shape[-1] == 2 * d_ff
    return Candidate((newest.name,), down.name, True, down.features) if fused else None
