"""Saved training states: an interrupted training continues bit for bit where it was.

A state lies outside of the declared outputs, which the workflow deletes before every attempt. It
is named after everything that the training depends on, so that a changed config, code or input
starts anew instead of continuing something else. Randomness is no part of it: every step draws from
its own generator, seeded by (seed, step).

States are saved as often as is asked for, but seldom enough that it takes at most `SHARE` of the
time, whatever the model's size and the disk's speed. The training waits for a copy in the host's
memory alone, which a thread writes while it goes on: hashing and writing leave the interpreter to
it.
"""

import json
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.io.tensors import (
    copied,
    dealt,
    distinct,
    extra_memory,
    load_distinct,
    load_tensors,
    save_tensors,
)
from d2dmoe.jobs.memory import free_memory
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.shards import Offsets, latest, load_shards, own_parts, save_shards
from d2dmoe.processes import largest, leads, place, told

REMEDY = "Delete it, and the training starts from its beginning."
SHARE = 0.02  # of a training's time, at most, that goes into saving its state
ROOM = 0.5  # of the host's free memory, at most, that goes into a copy of a state
SPEED = 200e6  # bytes/s at which the first state is expected to be saved: a slow network disk's


class About(BaseModel):
    """Where a saved training stands."""

    of: str  # which training
    step: Annotated[int, Field(ge=0)]
    history: list[dict[str, Any]]
    sums: dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class TrainingState:
    """Saves model, optimiser, position and history to one file by atomic rename, or, of several
    processes, to a folder (`shards`). Either continues with any number of them.

    Saves every `every_s` seconds, or more seldom where that would take more than `SHARE` of the
    time; after every step, whatever it takes, where that is 0; and when the process is told to stop
    (SIGTERM, SIGINT). One state is written at a time.
    """

    def __init__(self, path: Path, every_s: float):
        self.path, self.every_s = path, every_s
        self.began = self.saved_at = time.monotonic()
        self.spent = 0.0  # seconds in which states have been saved, from the copy to the last byte
        self.cost = 0.0  # seconds that the next is expected to take
        self.asked: int | None = None  # the signal that told this process to stop
        self.stop: int | None = None  # the one on which all processes agree
        self._written: Future[None] | None = None  # where a thread writes a state

    @property
    def shards(self) -> Path:
        """Where several processes save."""
        return self.path.with_suffix(".shards")

    @property
    def _name(self) -> str:
        """Says whose state it is."""
        return self.path.stem

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
        """Restore in place; returns the steps done, the history of whole epochs, and the sums of
        the current epoch's losses: (0, [], {}) when there is no state.

        Raises:
            CheckpointError: the file is damaged, or does not fit the model.
        """
        self.cost = _expected_size(model) / SPEED
        shards = latest(self.shards)
        if shards is None and not self.path.exists():
            return 0, [], {}
        path = shards or self.path
        try:
            tensors, text = self._read(shards, model, optimizer)
            about = About.model_validate_json(text)
            if about.of != self._name:
                raise ValueError(f"it is that of {about.of}")
            split: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}}
            for name, tensor in tensors.items():
                kind, _, key = name.partition("/")
                split[kind][key] = tensor
            load_distinct(model, split["model"])
            optimizer.load_state_dict(_nest(split["optimizer"], optimizer))
            return about.step, about.history, about.sums
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is not the state of this training: {error}. {REMEDY}"
            ) from error

    def _read(
        self, shards: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[Mapping[str, torch.Tensor], str]:
        """Tensors, in parts where the model's are, and what is said of them."""
        weights = {f"model/{name}": t for name, t in model.state_dict().items()}
        parameters = _parameters(optimizer)

        def like(name: str) -> torch.Tensor:
            kind, _, key = name.partition("/")
            return weights[name] if kind == "model" else parameters[int(key.partition("/")[0])]

        def empty(name: str, size: tuple[int, ...]) -> torch.Tensor:
            if name.startswith("optimizer/") and not size:
                return torch.zeros(())
            if like(name).shape != size:
                raise ValueError(f"{name} has another shape")
            return torch.empty_like(like(name))

        if shards:
            return load_shards(shards, empty, REMEDY)
        device = next(model.parameters()).device
        tensors, metadata = load_tensors(self.path, REMEDY, device)
        if place().size > 1:
            tensors = {n: dealt(t, like(n)) if t.dim() else t for n, t in tensors.items()}
        return tensors, metadata["about"]

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        history: list[dict],
        sums: Mapping[str, Any],
    ) -> None:
        """Save after `step` steps; of the first, the log says what it takes.

        The state before it is written first. This one is copied and written while the training goes
        on; but at once, without a copy, where memory is scarce or the training is to stop.

        Raises:
            UserError: the disk is full, now or when the state before it was written; the last that
                was saved is intact.
        """
        self.wait()
        start = time.monotonic()
        tensors = {f"model/{name}": t for name, t in distinct(model.state_dict()).items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": t for name, t in values.items()}
        size, offsets = _size(tensors), Offsets()
        if place().size > 1:
            tensors, offsets = own_parts(tensors)
        sums = {key: float(value) for key, value in sums.items()}
        about = json.dumps({"of": self._name, "step": step, "history": history, "sums": sums})

        def write() -> None:
            if place().size > 1:
                save_shards(self.shards, step, tensors, offsets, about)
                self._remove_file()
            else:
                save_tensors(self.path, tensors, {"about": about})
                shutil.rmtree(self.shards, ignore_errors=True)
            self.saved_at = time.monotonic()
            self.cost = self.saved_at - start
            if not self.spent:
                _log_first(step, size, self.cost, waited or self.cost, more)
            self.spent += self.cost

        waited, more = 0.0, extra_memory(tensors)
        if _copy_fits(tensors) and self.stop is None:
            tensors, more = copied(tensors), _size(tensors)
            waited = time.monotonic() - start
            thread = ThreadPoolExecutor(1, "state")
            self._written = thread.submit(write)
            thread.shutdown(wait=False)  # it ends when that is done
        else:
            write()

    def wait(self) -> None:
        """Until the state is written that was saved last.

        Raises:
            UserError: it could not be; told once.
        """
        written, self._written = self._written, None
        if written:
            written.result()

    def due(self) -> bool:
        """Whether it is time to save: the first of several processes says it, and any may be told
        to stop. Where one could not be written, so that the next `save` says it in all of them.
        """
        said = largest(2 * (self.asked or 0) + (self._failed() or (leads() and self._due())))
        self.stop = said // 2 or None
        return said > 0

    def _failed(self) -> bool:
        written = self._written
        return bool(written and written.done() and written.exception())

    def _due(self) -> bool:
        if self.every_s == 0:
            return True
        if self._written and not self._written.done():
            return False
        now = time.monotonic()
        if now - self.saved_at < self.every_s:
            return False
        return self.spent + self.cost <= SHARE * (now - self.began + self.cost)

    def stop_if_asked(self, step: int) -> None:
        """End the job if a signal asked for it; the state has been saved by then.

        Raises:
            UserError: a signal came.
        """
        if self.stop is not None:
            raise UserError(
                f"stopped by {signal.Signals(self.stop).name} after {step} steps; the state is "
                "saved. Run the same command again to continue from there."
            )

    def remove(self) -> None:
        """Delete the state: the training is complete and its result saved.

        With it goes what a process that was killed while it saved left beside it. The first of
        several processes deletes it, so that the others need not wait for the result.
        """
        self._settle()
        self._remove_file()
        if leads():
            shutil.rmtree(self.shards, ignore_errors=True)

    def _remove_file(self) -> None:
        if not leads():
            return
        for path in (self.path, *self.path.parent.glob(f".{self.path.name}.*")):
            path.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Wait where an error would end nothing: the training has ended, well or by another."""
        try:
            self.wait()
        except Exception as error:
            logger.warning("the last state of the training was not saved: %s", error)

    @contextmanager
    def training(self):
        """Turn SIGTERM and SIGINT into a request that the training loop meets after its step; at
        its end, wait for the state that is being written.

        Raises:
            UserError: it could not be written.
        """

        def ask(number, _frame):
            self.asked = number

        previous = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
            self.wait()
        finally:
            self._settle()
            for number, handler in previous.items():
                signal.signal(number, handler)


def _expected_size(model: nn.Module) -> int:
    """Bytes of a model and of the two moments that the optimiser will have of what is trained."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return 2 * trained + sum(t.nbytes for t in distinct(model.state_dict()).values())


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _copy_fits(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the copies that its processes make take at most `ROOM` of a machine's free memory,
    on every machine."""
    every = told((socket.gethostname(), _size(tensors), free_memory()))
    taken: Counter[str] = Counter()
    for host, size, _free in every:
        taken[host] += size
    return all(taken[host] <= ROOM * free for host, _size, free in every)


def _log_first(step: int, size: int, seconds: float, waited: float, more: int) -> None:
    logger.info(
        "state of %.1f MiB saved after step %d in %.2f s, of which the training waited %.2f s, "
        "with %.1f MiB more memory of the host",
        *(size / 2**20, step, seconds, waited, more / 2**20),
    )


def _parameters(optimizer: torch.optim.Optimizer) -> dict[int, torch.Tensor]:
    """What it trains, by the numbers of its states."""
    return dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))


def _nest(flat: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict:
    """From "index/name" keys to the form of the optimiser's state dict."""
    state: dict[int, dict] = {}
    parameters = _parameters(optimizer)
    for key, tensor in flat.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
        if tensor.dim() and tensor.shape != parameters[int(index)].shape:
            raise ValueError(f"the optimiser's {key} has another shape than its parameter")
    if len({frozenset(values) for values in state.values()}) > 1:
        raise ValueError("the optimiser's parameters have different values")
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
