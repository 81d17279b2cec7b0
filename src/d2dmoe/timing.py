"""Timing several functions so that they can be compared: interleaved, medians, idle caches."""

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from d2dmoe.errors import UserError

ROUNDS = 5  # of all functions in turn, so that a drift of the machine's speed meets all alike


Key = TypeVar("Key", bound=Hashable)


class Timing(NamedTuple):
    """Of one function, in milliseconds; peak memory in MiB beyond what it was given."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    peak_mb: float | None  # None on the CPU


def compare(
    functions: Mapping[Key, Callable[[], object]],
    device: torch.device,
    round_s: float = 0.1,
    graph: bool = False,
) -> dict[Key, Timing]:
    """Time functions in turn, each for about `round_s` seconds in each of `ROUNDS` rounds.

    On CUDA the L2 cache is emptied before every call. With `graph` the calls there are replays of a
    CUDA graph of the function, without the time that Python and the launches take.

    Raises:
        UserError: a function cannot be captured in a CUDA graph.
    """
    times: dict[Key, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # compiles, and fills the allocator's pools
    timed = _replays(functions) if graph and device.type == "cuda" else functions
    for _ in range(ROUNDS):
        for name, function in timed.items():
            times[name] += _times_ms(function, device, round_s)
    peaks = {name: _peak_mb(function, device) for name, function in functions.items()}
    return {
        name: Timing._make([*map(float, np.quantile(ms, (0.5, 0.2, 0.8))), peaks[name]])
        for name, ms in times.items()
    }


def _replays(functions: Mapping[Key, Callable[[], object]]) -> dict[Key, Callable[[], object]]:
    """Each function's CUDA graph; they share their memory, for none reads what another wrote."""
    pool, graphs = torch.cuda.graph_pool_handle(), {}
    for name, function in functions.items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        graphs[name] = torch.cuda.CUDAGraph()
        gc.collect()  # a kernel that is unloaded during the capture ends it
        try:
            with torch.cuda.graph(graphs[name], pool=pool):
                function()
        except RuntimeError as error:
            raise UserError(
                f"{name} cannot be captured in a CUDA graph, as nothing can that waits for the "
                f"GPU: {str(error).splitlines()[0]}"
            ) from error
    return {name: captured.replay for name, captured in graphs.items()}


def _times_ms(function: Callable[[], object], device: torch.device, round_s: float) -> list[float]:
    if device.type == "cuda":
        from triton.testing import do_bench

        ms = int(1e3 * round_s)
        return do_bench(function, warmup=ms // 4, rep=ms, return_mode="all")
    times: list[float] = []
    end = time.perf_counter() + round_s
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _peak_mb(function: Callable[[], object], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
