"""Device memory for experts that lie in host memory, and the copies to it.

On CUDA, copies from host memory, which is pinned, run on a stream of their own beside the layers'
kernels. Their order is kept by what streams wait for, never by what the host waits for: a copy
waits for all that was launched before it, since it may overwrite what that reads, and a layer
waits for the copies that it needs. Elsewhere a copy is over when its call returns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Rows = dict[str, Tensor]  # of experts, by the field of `ExpertWeights`: [experts, ...]


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, pinned where CUDA can read it so; itself if it is there already."""
    if not torch.cuda.is_available():
        return tensor.cpu()
    if tensor.is_pinned():
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def empty_rows(like: Rows, count: int, device: torch.device) -> Rows:
    """Zeros for so many experts: what no expert was copied to must be finite, for dense layers
    multiply it by 0."""
    with torch.inference_mode(False):  # else only there could they be written
        return {name: x.new_zeros(count, *x.shape[1:], device=device) for name, x in like.items()}


class Copies:
    """Copies to one device, in their order."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is copied in the block waits for all that was launched before, and nothing waits
        for it: see `mark`."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """What `wait` takes to wait for all copies up to now."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self, mark: Any) -> None:
        """Let what is launched from now on wait for the copies before a mark."""
        if self._stream is not None and mark is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(mark)


class Memory:
    """What the offloaded layers of a model share: for each device its copies, and a room of a
    whole layer's size, in which the experts of the layer that runs stand in their order."""

    def __init__(self) -> None:
        self._copies: dict[torch.device, Copies] = {}
        self._rooms: dict[tuple, Rows] = {}

    def clear(self) -> None:
        """Give up the rooms; they are made again where they are needed."""
        self._rooms.clear()

    def copies(self, device: torch.device) -> Copies:
        """The copies to a device."""
        if device not in self._copies:
            self._copies[device] = Copies(device)
        return self._copies[device]

    def room(self, host: Rows, device: torch.device) -> Rows:
        """For layers of these shapes and dtypes."""
        kind = (device, *((name, x.shape, x.dtype) for name, x in host.items()))
        if kind not in self._rooms:
            count = len(next(iter(host.values())))
            self._rooms[kind] = empty_rows(host, count, device)
        return self._rooms[kind]


def copy_experts(host: Rows, experts: Sequence[int], target: Rows, places: Sequence[int]) -> None:
    """Copy experts from host memory, each to its place: a copy for each field of each."""
    for expert, place in zip(experts, places, strict=True):
        for name, rows in host.items():
            target[name][place].copy_(rows[expert], non_blocking=True)


def move_experts(source: Rows, places: Sequence[int], target: Rows, at: Sequence[int]) -> None:
    """Copy experts within a device, all at once for each field."""
    if not places:
        return
    device = next(iter(source.values())).device
    both = torch.tensor([places, at]).to(device, non_blocking=True)
    for name, rows in source.items():
        target[name].index_copy_(0, both[1], rows.index_select(0, both[0]))
