"""Tuning: a layer's shape is run by a few launches on this device, and the fastest is kept.

A candidate takes up to about two seconds, nearly all to compile it; once per shape, class of tokens
and device, since the fastest goes to the user's cache (`launch.user_table`).
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from triton.errors import TritonError

from d2dmoe.errors import UserError
from d2dmoe.io.files import write_atomically
from d2dmoe.jobs.progress import logger
from d2dmoe.kernels import persistent
from d2dmoe.kernels.launch import (
    Entry,
    Launch,
    Shape,
    default_launch,
    known,
    learn,
    read_table,
    shape_of,
    token_class,
    user_table,
)
from d2dmoe.timing import compare
from d2dmoe.weights import ExpertWeights

ROUND_S = 0.01  # of a candidate, in each of the rounds that `compare` makes

# Changes to the default. The stages of the first product take up to 192 KiB of shared memory, at
# 128 neurons, which an H100 has (227 KB).
UNGATED: tuple[dict[str, Any], ...] = (
    {},
    {"num_warps": 4, "registers": None},
    {"tile": 64, "num_warps": 4, "per_processor": 3, "registers": 168},
    {"tile": 256, "num_warps": 16, "per_processor": 1},
    {"block_n": 128},
    {"tma": False},
)
GATED: tuple[dict[str, Any], ...] = (
    {},
    {"num_stages": 2},
    {"num_stages": 4, "per_processor": 1},
    {"tile": 64, "num_warps": 4, "num_stages": 2},
    {"tile": 64, "num_stages": 2, "registers": 128},
    {"tma": False},
)
MANY = ({"superblock": 4096}, {"superblock": 16384})  # where there are several superblocks
FEW = ({"superblock": 1024}, {"tile": 32, "num_warps": 4, "num_stages": 2, "per_processor": 4})


def tune(z: Tensor, weights: ExpertWeights, mask: Tensor, again: bool = False) -> Launch:
    """The fastest launch for a layer's shape and class of tokens on z's device.

    `launch_for` gives it from now on, in this process and in later ones. What the user's cache
    knows already is not timed unless `again`.

    Args:
        z: real inputs, [tokens, d_model], contiguous.
        weights: of z's dtype.
        mask: their experts, boolean [tokens, n], contiguous: how many run decides what is fastest.

    Raises:
        UserError: no candidate can be launched on the device.
    """
    shape, tokens = shape_of(z, weights), token_class(len(z))
    if tokens in known(shape) and not again:
        return known(shape)[tokens].launch
    start, launches = time.monotonic(), candidates(shape, tokens)
    logger.info("tuning the expert kernel for %s: %d launches", _name(shape, tokens), len(launches))
    runs = _runnable(
        {launch: partial(persistent.run, z, weights, launch, mask=mask) for launch in launches},
        _name(shape, tokens),
    )
    ms = {launch: t.median_ms for launch, t in compare(runs, z.device, ROUND_S).items()}
    launch = min(ms, key=ms.__getitem__)
    logger.info(
        "%d of them ran, in %.0f s; the fastest takes %.3g ms, the slowest %.3g: %s",
        len(runs),
        time.monotonic() - start,
        ms[launch],
        max(ms.values()),
        launch,
    )
    entry = Entry(**shape._asdict(), tokens=tokens, launch=launch, ms=ms[launch])
    learn(entry)
    _save(entry, user_table())
    return launch


def candidates(shape: Shape, tokens: int) -> list[Launch]:
    """The launches that are tried for a shape and class of tokens, the default first."""
    default = default_launch(shape.dtype, shape.gated)
    changes = (GATED if shape.gated else UNGATED) + (MANY if tokens > default.superblock else FEW)
    return [replace(default, **change) for change in changes]


def _runnable(
    runs: Mapping[Launch, Callable[[], Tensor]], layer: str
) -> dict[Launch, Callable[[], Tensor]]:
    """Those that can be compiled, and have enough shared memory and registers.

    Raises:
        UserError: none.
    """
    runnable, failure = {}, None
    for launch, run in runs.items():
        try:
            run()
        except (TritonError, RuntimeError) as error:  # the latter where a pass of Triton's fails
            logger.info("left out %s: %s", launch, error)
            failure = error
        else:
            runnable[launch] = run
    if not runnable:
        raise UserError(
            f"the expert kernel cannot be launched for {layer}: {failure}. To go on: set the "
            'layers\' `moe.backend.name = "dense"` instead of calibrating them.'
        ) from failure
    return runnable


def _name(shape: Shape, tokens: int) -> str:
    form = "gated experts" if shape.gated else "experts"
    return (
        f"{shape.num_experts} {form} of {shape.expert_size}, {shape.d_model} → {shape.d_out}, "
        f"{shape.dtype}, up to {tokens} tokens, on {shape.device}"
    )


def _save(entry: Entry, path: Path) -> None:
    """Put an entry into a table instead of that of the same shape and class of tokens.

    Others stay as they are, those of another version too. Processes that write at the same time
    wait for each other.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = [*_others(entry, path), entry.model_dump()]
            write_atomically(path, partial(_write, lines=lines))
    except (OSError, UserError) as error:
        logger.warning("this process keeps the launch that it found, later ones not: %s", error)


def _others(entry: Entry, path: Path) -> list[dict]:
    key = entry.shape._asdict() | {"tokens": entry.tokens}
    try:
        lines = read_table(path)
    except ValueError:  # damaged, as was said when it was first read
        return []
    return [line for line in lines if {name: line.get(name) for name in key} != key]


def _write(path: Path, lines: Iterable[dict]) -> None:
    """One entry a line, so that a person can compare and copy them."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n", encoding="utf-8")
