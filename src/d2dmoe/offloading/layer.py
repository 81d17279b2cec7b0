"""A layer whose experts lie in host memory, and some of them on the device too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2dmoe.errors import ModelError, UserError
from d2dmoe.moe import MoE
from d2dmoe.offloading.cache import ExpertCache, ranked
from d2dmoe.offloading.memory import (
    Copies,
    Memory,
    Rows,
    copy_experts,
    empty_rows,
    move_experts,
    to_host,
)
from d2dmoe.offloading.recording import expected_mask
from d2dmoe.weights import ExpertWeights, check_dtype

EXPERTS = ("up", "gate", "down", "up_bias", "gate_bias")  # weights with a row for each expert


@dataclass
class Traffic:
    """What a layer's calls came to, in experts; of a layer that holds all of them, nothing."""

    uses: int = 0
    misses: int = 0  # uses that waited for a copy from host memory
    fetched: int = 0  # copied ahead, because the layer before expected them

    @property
    def hit_rate(self) -> float:
        """Share of the uses that found the expert on the device; 1 where there were none."""
        return 1 - self.misses / self.uses if self.uses else 1.0


@dataclass
class Place:
    """What a layer has on one device."""

    device: torch.device
    held: Rows  # the cached experts, by slot; of a cache of all experts, by expert
    room: Rows | None  # in which the experts stand that run; None: they run where they are held
    copies: Copies
    arriving: Any = None  # a mark: the copies that were made ahead


class OffloadedMoE(MoE):
    """An MoE layer that runs as the one that it stands for, with the same weights.

    `model.to(device)` and the like move all but its experts. Not for several threads at once.
    """

    def __init__(self, moe: MoE, size: int, order: Sequence[int], memory: Memory):
        """Takes the experts of a layer to host memory.

        Args:
            moe: with a router; `restored` gives it back.
            size: experts that the device holds.
            order: of all experts, the first of which it holds at first.
            memory: which the layers of a model share.

        Raises:
            ModelError: see `check_offloadable`.
        """
        check_offloadable(moe)
        nn.Module.__init__(self)
        self.__dict__.update(moe.__dict__)  # its parameters, router, selection and backend
        self.size, self.traffic = size, Traffic()
        self._moe, self._memory = [moe], memory  # in a list: it is no part of this module
        self._next: list[OffloadedMoE] = []
        self.host: Rows = {}  # the experts' weights
        for name in EXPERTS:
            if (weight := getattr(moe, name)) is not None:
                weight.data = to_host(weight.data)
                self.host[name] = weight.detach()
        self._order, self._cache = order, ExpertCache(size, order)
        self._place: Place | None = None

    @property
    def device(self) -> torch.device:
        """Where its router lies, and so its tokens."""
        router: Any = self.router
        return next(router.parameters()).device

    @property
    def holds_all(self) -> bool:
        """Whether the device holds every expert."""
        return self.size == self.num_experts

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        return sum(rows[0].nbytes for rows in self.host.values())

    def expects(self, following: "OffloadedMoE") -> None:
        """Fetch ahead, from now on, what a later layer is expected to use."""
        self._next = [following]

    def restored(self) -> MoE:
        """The layer that it stands for, with its experts on the device of its router; what it has
        there besides is given up."""
        moe, device = self._moe[0], self.device
        for name in self.host:
            weight = getattr(moe, name)
            weight.data = weight.data.to(device)
        self._leave()
        self._memory.clear()
        return moe

    def _leave(self) -> None:
        """Give up what it has on a device, once nothing is copied there any more."""
        if self._place is not None:
            self._place.copies.wait(self._place.arriving)
            self._place = None

    def _apply(self, fn: Any, recurse: bool = True) -> "OffloadedMoE":
        everything = dict(self._parameters)
        for name in self.host:
            del self._parameters[name]
        try:
            super()._apply(fn, recurse)
        finally:
            everything |= {n: self._parameters[n] for n in everything if n not in self.host}
            self._parameters.clear()
            self._parameters.update(everything)  # in the same order
        return self

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise ModelError("a model with offloaded experts cannot be copied or pickled: restore it")

    @torch.compiler.disable
    def forward(self, z: Tensor) -> Tensor:  # [..., d_model] -> [..., d_out]
        if torch.is_grad_enabled():
            raise UserError(
                "offloaded experts have no gradients: call the model under torch.no_grad() or "
                "torch.inference_mode(), or restore it before it is trained"
            )
        return super().forward(z)

    def run(self, z: Tensor, backend: str) -> Tensor:
        """As `MoE.run`; the selection is that of `Selection`, on every backend."""
        check_dtype(z, self.weights)
        router: Any = self.router
        mask = self.selection(router(z))
        weights = self._on_device(z, mask)
        return self.by_mask(z, mask, weights, "dense" if weights.mixed else backend)

    def _on_device(self, z: Tensor, mask: Tensor) -> ExpertWeights:
        """Weights of all experts, of which those of the mask are true."""
        place = self._placed(z.device)
        used, expected = self._chosen(z, mask)
        place.copies.wait(place.arriving)
        place.arriving = None
        if place.room is None:
            self._fetch_ahead(expected)
            return self._weights(place.held)
        experts = ranked(used)
        missing = self._cache.missing(experts)
        with place.copies.running():
            copy_experts(self.host, missing, place.room, missing)
        copied = place.copies.mark()
        hits = {e: self._cache.slots[e] for e in experts if e in self._cache.slots}
        move_experts(place.held, [*hits.values()], place.room, [*hits])
        self._fetch_ahead(expected)
        place.copies.wait(copied)
        admitted = self._cache.admit(experts)
        move_experts(place.room, [*admitted], place.held, [*admitted.values()])
        self.traffic.uses += len(experts)
        self.traffic.misses += len(missing)
        return self._weights(place.room)

    def _chosen(self, z: Tensor, mask: Tensor) -> tuple[list[int], list[int]]:
        """How many tokens chose each expert, and of the following layer are expected to; nothing
        where nobody must know. The one time in a call that the host waits for the device."""
        counts = [] if self.holds_all else [mask.flatten(0, -2).sum(0)]
        for following in self._next:
            if not following.holds_all:
                counts.append(expected_mask(following, z).flatten(0, -2).sum(0).to(z.device))
        numbers = torch.cat(counts).tolist() if counts else []
        own = 0 if self.holds_all else self.num_experts
        return numbers[:own], numbers[own:]

    def _fetch_ahead(self, expected: list[int]) -> None:
        if expected:
            self._next[0].fetch(ranked(expected))

    def fetch(self, experts: list[int]) -> None:
        """Copy experts to the device that are expected to be used, as many as it can hold."""
        place = self._placed(self.device)
        admitted = self._cache.admit(experts)
        with place.copies.running():
            copy_experts(self.host, [*admitted], place.held, [*admitted.values()])
        place.arriving = place.copies.mark()
        self.traffic.fetched += len(admitted)

    def _placed(self, device: torch.device) -> Place:
        """What the layer has on a device; on the first call there its cache is filled."""
        if self._place is None or self._place.device != device:
            self._leave()
            self._cache = ExpertCache(self.size, self._order)
            first = range(self.size) if self.holds_all else self._order[: self.size]
            host, held = self.host, empty_rows(self.host, self.size, device)
            copy_experts(host, first, held, range(self.size))
            room = None if self.holds_all else self._memory.room(host, device)
            self._place = Place(device, held, room, self._memory.copies(device))
        return self._place

    def _weights(self, rows: Rows) -> ExpertWeights:
        """Of rows for all experts."""
        maps: dict[str, Any] = dict(rows)
        return ExpertWeights(activation=self.activation_name, down_bias=self.down_bias, **maps)


def check_offloadable(moe: MoE) -> None:
    """Refuse layers whose experts cannot be taken to host memory.

    Raises:
        ModelError: the layer is of another method, quantised, offloaded already, or without memory.
    """
    if type(moe) is not MoE:
        raise ModelError(
            f"layers of type {type(moe).__name__} cannot be offloaded: they are of another method "
            "than D2DMoE, quantised, or offloaded already"
        )
    if moe.up.is_meta:
        raise ModelError("the experts are on the meta device, where they have no values: load them")
