"""How the expert kernel is launched.

The values were the fastest of 18 tried for a layer of ViT-B (50,432 tokens, 24 × 128, bf16)
on an H100, at a fifth of the experts.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """Launch options of `persistent.run`."""

    superblock: int = 8192  # tokens whose inputs and outputs shall stay in the L2 cache
    tile: int = 128  # tokens
    block_k: int = 64  # columns of z that a step of the first product takes
    block_n: int = 64  # columns of the output that a step of the second product makes
    num_warps: int = 8
    num_stages: int = 3
    per_processor: int = 2  # programs that share a multiprocessor
    registers: int | None = 128  # most of a thread, so that as many programs share a multiprocessor
    ahead: int = 2  # superblocks that are routed before the experts of one run
    tma: bool = True  # whether weights come by the tensor memory accelerator
    deterministic: bool = False

    def programs(self, device: torch.device) -> int:
        """Persistent programs of the grid."""
        return self.per_processor * processors(device)


def launch_for(z: Tensor) -> Launch:
    """The launch for tokens z; deterministic where torch's deterministic algorithms are on."""
    launch = Launch()
    if z.dtype == torch.float32:  # twice the bytes a stage
        launch = replace(launch, block_k=32)
    if torch.are_deterministic_algorithms_enabled():
        launch = replace(launch, superblock=256, tile=64, deterministic=True)
    return launch


@cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
