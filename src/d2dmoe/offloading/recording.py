"""Which experts the tokens of some samples use, and which ones the layer before expects."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.api.batches import Batch, as_batches
from d2dmoe.errors import UserError
from d2dmoe.moe import MoE
from d2dmoe.selection import Selection
from d2dmoe.surgery import Hook, find, in_mode


@dataclass(frozen=True)
class Recording:
    """Selections of tokens, by layer, one text after the other: as decoding calls the layers."""

    used: dict[str, Tensor]  # bool [tokens, n]
    expected: dict[str, Tensor]  # the same, of layers that have one before them


def routed_layers(model: nn.Module) -> dict[str, MoE]:
    """The layers with experts and routers.

    Raises:
        UserError: there are none, or one has no router.
    """
    moes = find(model, MoE)
    if not moes:
        raise UserError(f"{type(model).__name__} has no experts: convert it first")
    if bare := [name for name, moe in moes.items() if moe.router is None]:
        raise UserError(f"{', '.join(bare)}: no router yet; train the routers first")
    return moes


def successors(moes: dict[str, MoE]) -> dict[str, str]:
    """The layer whose experts are expected while one runs, by name: the next one of its role that
    takes as wide tokens. The last one of a role has none."""
    found: dict[str, str] = {}
    last: dict[tuple[str, int], str] = {}
    for name, moe in moes.items():
        kind = moe.role, moe.d_model
        if kind in last:
            found[last[kind]] = name
        last[kind] = name
    return found


def expected_mask(following: MoE, z: Tensor) -> Tensor:
    """What a layer would select of the input of the one before it: bool [..., n].

    The residual stream changes little from block to block. Hooks that watch the layer's own
    selections see nothing of it.
    """
    router: Any = following.router
    scores = router.forward(z.to(next(router.parameters()).device))
    return following.selection.forward(scores)


@torch.inference_mode()
def record(model: nn.Module, batches: Iterable[Any], batch_size: int = 8) -> Recording:
    """See which experts each real token uses at the model's operating point.

    Args:
        model: converted, with routers; in eval mode meanwhile.
        batches: see `as_batches`; targets are not needed.
        batch_size: rows of a `datasets.Dataset` in a batch.

    Raises:
        UserError: the model has no routed experts, or batches are not as they should be.
    """
    seen = _Seen(routed_layers(model))
    with in_mode(model, training=False), seen.watching():
        for batch in as_batches(batches, model, batch_size=batch_size):
            seen.batch = batch
            batch.outputs(model)
    return seen.joined()


class _Seen:
    """What hooks have seen of the layers."""

    batch: Batch

    def __init__(self, moes: dict[str, MoE]):
        self._moes, self._next = moes, successors(moes)
        self._used: dict[str, list[Tensor]] = {name: [] for name in moes}
        self._expected: dict[str, list[Tensor]] = {name: [] for name in self._next.values()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, moe in self._moes.items():
                handle = moe.selection.register_forward_hook(Hook(partial(self._select, name)))
                hooks.callback(handle.remove)
                if name in self._next:
                    handle = moe.register_forward_hook(Hook(partial(self._expect, name)))
                    hooks.callback(handle.remove)
            yield

    def _select(self, name: str, _selection: Selection, _scores: tuple, mask: Tensor) -> None:
        self._used[name].append(self._real(name, mask))

    def _expect(self, name: str, _moe: MoE, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
        following = self._next[name]
        mask = expected_mask(self._moes[following], inputs[0])
        self._expected[following].append(self._real(name, mask))

    def _real(self, name: str, mask: Tensor) -> Tensor:
        """Of the real tokens, [tokens, n], on the CPU."""
        real = self.batch.real_tokens.of(name, mask.shape[:-1])
        return (mask.flatten(0, -2) if real is None else mask[real]).cpu()

    def joined(self) -> Recording:
        used = {n: torch.cat(parts) for n, parts in self._used.items() if parts}
        expected = {n: torch.cat(parts) for n, parts in self._expected.items() if parts}
        if silent := self._used.keys() - used.keys():
            raise UserError(f"the model does not call {', '.join(sorted(silent))}")
        fitting = {n: mask for n, mask in expected.items() if mask.shape == used[n].shape}
        return Recording(used, fitting)
