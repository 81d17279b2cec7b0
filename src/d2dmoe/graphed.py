"""A training step as one CUDA graph.

A GPU waits for small models: their kernels take less time than it takes to start them. A step that
does the same at every call is recorded once for each shape of a batch and then started as a whole.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from d2dmoe.data.splits import Batch
from d2dmoe.jobs.progress import logger

Step = Callable[[Batch, Tensor], dict[str, Tensor]]
FIRST = 3  # steps of a shape that are not recorded: libraries and the optimiser make their buffers


class GraphedStep:
    """A step that is recorded at the fourth call of a shape and replayed from then on.

    What the step computes may depend on its arguments, on tensors that stay in their places and on
    the GPU's random numbers alone: of others it goes on with what it saw when it was recorded. One
    that waits for the GPU cannot be recorded: it is called as it is, which the log says.
    """

    def __init__(self, step: Step, device: torch.device):
        """
        Args:
            step: of a batch and a scalar, the share of the training that is done; gives
                scalars by name. It holds whole updates: backward pass and optimiser too.
            device: a CUDA device, where batches are.
        """
        self._step = step
        self._side = torch.cuda.Stream(device)
        self._progress = torch.zeros((), device=device)
        self._seen: Counter[tuple] = Counter()
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, Batch, dict[str, Tensor]]] = {}
        self._recordable = True

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The step's scalars, which the next call may overwrite."""
        self._progress.fill_(progress)
        if not self._recordable:
            return self._step(batch, self._progress)
        key = _shape(batch)
        self._seen[key] += 1
        if self._seen[key] <= FIRST:
            return self._called(batch, self._seen[key] == FIRST)
        if key not in self._graphs:
            self._record(key, batch)
        graph, places, scalars = self._graphs[key]
        _copy(batch, places)
        graph.replay()
        return scalars

    def _called(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        """On a stream of its own, as what is recorded later must have been; the last of these
        calls, when all buffers are made, tells whether the step waits for the GPU."""
        own = torch.cuda.current_stream()
        self._side.wait_stream(own)
        with torch.cuda.stream(self._side), _noting_waits() as waits:
            scalars = self._step(batch, self._progress)
        own.wait_stream(self._side)
        if waits and last:
            self._recordable = False
            logger.info("steps are not recorded as CUDA graphs: they wait for the GPU")
        return scalars

    def _record(self, key: tuple, batch: Batch) -> None:
        """Nothing is computed, and no weight is changed."""
        inputs, targets = batch
        places = {name: tensor.clone() for name, tensor in inputs.items()}, targets.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # readers go on
            scalars = self._step(places, self._progress)
        self._graphs[key] = graph, places, scalars


@contextmanager
def _noting_waits() -> Iterator[list[str]]:
    """Afterwards, torch's words on each time that the process waited for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # warns of itself first
            waits: list[str] = []
            yield waits
            waits += [str(w.message) for w in said if "synchronizing" in str(w.message)]
    finally:
        with warnings.catch_warnings(action="ignore"):
            torch.cuda.set_sync_debug_mode(before)


def _shape(batch: Batch) -> tuple:
    inputs, targets = batch
    tensors = {**inputs, "": targets}
    return tuple((name, tuple(t.shape), t.dtype) for name, t in tensors.items())


def _copy(batch: Batch, places: Batch) -> None:
    inputs, targets = batch
    for name, tensor in inputs.items():
        places[0][name].copy_(tensor)
    places[1].copy_(targets)
