"""How the expert kernel is launched: as was fastest for the layer's shape on this device.

What was measured stands in a table, the user's cache, which `tuning` writes. A shape that it does
not know gets a default. Nothing is compiled or timed to find out, and the table is read once.
"""

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from d2dmoe.config.strict import Strict
from d2dmoe.jobs.progress import logger
from d2dmoe.weights import ExpertWeights


@dataclass(frozen=True)
class Launch:
    """Launch options of `persistent.run`.

    The values were the fastest of about 40 tried for a layer of ViT-B (50,432 tokens, 24 × 128,
    bf16) on an H200, over executed shares of 0.1 to 0.65.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    superblock: int = 8192  # tokens whose inputs and outputs shall stay in the L2 cache
    tile: int = 128  # tokens
    block_k: int = 64  # columns of z that a step of the first product takes
    block_n: int = 64  # columns of the output that a step of the second product makes
    num_warps: int = 8
    num_stages: int = 3
    per_processor: int = 2  # programs that share a multiprocessor
    registers: int | None = 128  # most of a thread, so that as many programs share a multiprocessor
    ahead: int = 5  # superblocks that are routed before the experts of one run
    tma: bool = True  # whether weights come by the tensor memory accelerator
    deterministic: bool = False

    def programs(self, device: torch.device) -> int:
        """Persistent programs of the grid."""
        return self.per_processor * processors(device)


class Shape(NamedTuple):
    """What the fastest launch depends on, but for the number of tokens."""

    device: str  # its name
    dtype: str
    d_model: int
    d_out: int
    expert_size: int
    num_experts: int
    gated: bool


class Entry(Strict):
    """A line of the table: the fastest launch for a shape and a number of tokens."""

    device: str
    dtype: str
    d_model: int
    d_out: int
    expert_size: int
    num_experts: int
    gated: bool
    tokens: int = Field(gt=0)  # rounded up to a power of two
    launch: Launch  # in a file, options that are left out are as in `Launch()`
    ms: float

    @property
    def shape(self) -> Shape:
        return Shape(*(getattr(self, name) for name in Shape._fields))


def launch_for(z: Tensor, weights: ExpertWeights) -> Launch:
    """The launch for tokens z [tokens, d_model]; costs microseconds.

    Where torch's deterministic algorithms are on it is the deterministic variant of the default, so
    that the output's last bits do not depend on what was tuned.
    """
    shape = shape_of(z, weights)
    if torch.are_deterministic_algorithms_enabled():
        return _deterministic(shape.dtype, shape.gated)
    return _fastest(shape, token_class(len(z)))


def default_launch(dtype: str, gated: bool) -> Launch:
    """The launch for shapes that were not measured."""
    launch = Launch()
    if dtype == "float32":  # twice the bytes a stage; numbers split in three need registers
        launch = replace(launch, block_k=32, registers=None, per_processor=1)
    if gated:  # the two accumulators alone take 128 registers of a thread
        launch = replace(launch, registers=None)
    return launch


def shape_of(z: Tensor, weights: ExpertWeights) -> Shape:
    """The shape under which the table knows a layer with tokens z."""
    return Shape(
        device_name(z.device),
        str(z.dtype).removeprefix("torch."),
        weights.d_model,
        weights.d_out,
        weights.expert_size,
        weights.num_experts,
        weights.gate is not None,
    )


def token_class(tokens: int) -> int:
    """The number of tokens rounded up to a power of two."""
    return 1 << max(0, tokens - 1).bit_length()


def known(shape: Shape) -> dict[int, Entry]:
    """What the table says of a shape, by class of tokens."""
    return _table().get(shape, {})


def learn(entry: Entry) -> None:
    """Let this process use an entry from now on, instead of what the table said."""
    _table().setdefault(entry.shape, {})[entry.tokens] = entry
    _fastest.cache_clear()


def user_table() -> Path:
    """The user's cache: in the folder $D2DMOE_CACHE, else in `d2dmoe` where caches are kept."""
    if folder := os.environ.get("D2DMOE_CACHE"):
        return Path(folder) / "launches.json"
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "d2dmoe" / "launches.json"


def read_table(path: Path) -> list[dict[str, Any]]:
    """A table's lines as they stand in the file, none if it is missing.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a list in JSON of objects.
    """
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise ValueError("it is not a list of entries")
    return lines


@cache
def _table() -> dict[Shape, dict[int, Entry]]:
    """The user's entries by shape and class of tokens."""
    table: dict[Shape, dict[int, Entry]] = {}
    for entry in _entries(user_table()):
        table.setdefault(entry.shape, {})[entry.tokens] = entry
    return table


def _entries(path: Path) -> list[Entry]:
    """A table's entries, without those of another version's options."""
    try:
        lines = read_table(path)
    except (OSError, ValueError) as error:
        logger.warning(
            "cannot use the table of kernel launches %s: %s. Delete it and calibrate anew; until "
            "then launches may be slower.",
            path,
            error,
        )
        return []
    entries = []
    for line in lines:
        try:
            entries.append(Entry.model_validate(line))
        except ValidationError:
            continue
    return entries


@cache
def _fastest(shape: Shape, tokens: int) -> Launch:
    """The launch of the nearest class of tokens that is known, else the default."""
    entries = known(shape)
    if not entries:
        return default_launch(shape.dtype, shape.gated)
    return entries[min(entries, key=lambda other: (abs(math.log2(other / tokens)), -other))].launch


@cache
def _deterministic(dtype: str, gated: bool) -> Launch:
    return replace(default_launch(dtype, gated), superblock=256, tile=64, deterministic=True)


@cache
def device_name(device: torch.device) -> str:
    """`cpu` in Triton's interpreter."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
