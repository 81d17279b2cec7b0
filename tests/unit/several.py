"""Code that several processes run together, as torchrun's do, on the CPU."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from d2dmoe.processes import joined

# Autograd counts the devices at the first gradient, and with more than the CPU bears no forks. Some
# code that tests run later, such as what compiles, adds devices that are none.
torch.ones((), requires_grad=True).backward()


def together(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What each of so many processes returns, by its rank. They are forks of this one, so that the
    function may be anything; what they return is pickled.

    Raises:
        AssertionError: one failed; the message has its traceback.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=_run, args=(Path(folder), rank, size, function, arguments))
            for rank in range(size)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(150)
            process.kill()
        found = [Path(folder) / str(rank) for rank in range(size)]
        outcomes = [pickle.loads(path.read_bytes()) if path.exists() else None for path in found]
    failed = [outcome for outcome in outcomes if not isinstance(outcome, tuple)]
    assert not failed, "\n".join(str(text or "a process was killed, or hung") for text in failed)
    return [outcome[0] for outcome in outcomes]


def _run(
    folder: Path, rank: int, size: int, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    where = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": size}
    try:
        with joined(**where):
            outcome: Any = (function(*arguments),)
    except BaseException:
        outcome = traceback.format_exc()
    path = folder / str(rank)
    path.with_suffix(".part").write_bytes(pickle.dumps(outcome))
    path.with_suffix(".part").rename(path)
    os._exit(0)
