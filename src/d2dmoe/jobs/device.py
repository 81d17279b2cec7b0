"""Where a job computes: one GPU, with no more jobs than may share one, or the CPU."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any, TextIO

import torch

from d2dmoe.jobs.progress import logger

_held: list[TextIO] = []  # open lock files; the system releases them when the process ends


def claim_device(
    locks: Path, wants_gpu: bool, jobs_per_gpu: int = 1, poll_s: float = 1.0
) -> torch.device:
    """The GPU with fewest jobs, waited for if all are taken, or the CPU when there is none.

    Args:
        locks: folder with a lock file per GPU, or several; hosts may share it.
        wants_gpu: whether the job was given a GPU.
        jobs_per_gpu: how many may share one.
        poll_s: seconds between looks at the locks.
    """
    if not wants_gpu or not torch.cuda.is_available():
        return torch.device("cpu")
    places = [  # the first of each GPU, then the second of each
        (index, locks / f"{socket.gethostname()}-{name}{place or ''}.lock")
        for place in range(jobs_per_gpu)
        for index, name in enumerate(_visible_gpus())
    ]
    locks.mkdir(parents=True, exist_ok=True)
    while True:
        for index, file in places:
            lock = open(file, "w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            _held.append(lock)
            return torch.device("cuda", index)
        logger.info("all GPUs are taken by other jobs; waiting for one")
        time.sleep(poll_s)


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process sees, in their order.

    Jobs that see different cards may count all of them from 0, so a name is the card's UUID. Parts
    of a card (MIG) may bear the card's; they are visible only by their own.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    parts = [entry.strip().replace("/", "_") for entry in visible if "MIG-" in entry]
    if parts:
        return parts[: torch.cuda.device_count()]
    indices = range(torch.cuda.device_count())
    return [str(torch.cuda.get_device_properties(index).uuid) for index in indices]


def make_deterministic(threads: int) -> None:
    """The same inputs give the same bytes: fixed thread count, deterministic kernels."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # a debugging aid, and slow
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_flush_denormal(True)
