"""Saved training states: an interrupted training continues bit for bit where it was.

A state lies outside of the declared outputs, which the workflow deletes before every attempt. It
is named after everything that the training depends on, so that a changed config, code or input
starts anew instead of continuing something else. Randomness is no part of it: every step draws from
its own generator, seeded by (seed, step).
"""

import hashlib
import json
import signal
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.io.files import sha256
from d2dmoe.io.tensors import distinct, load_distinct, load_tensors, save_tensors


def state_path(folder: Path, identity: Mapping[str, Any], inputs: list[Path]) -> Path:
    """Where the state of a training lies.

    Args:
        folder: holds the states of all trainings.
        identity: everything but files that determines the result: config, seed, code digest.
        inputs: the files that it reads; their contents count, not their names.
    """
    parts = [json.dumps(identity, sort_keys=True), *(sha256(path) for path in inputs)]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return folder / f"{name}.safetensors"


class About(BaseModel):
    """Where a saved training stands."""

    step: Annotated[int, Field(ge=0)]
    history: list[dict[str, Any]]
    sums: dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class TrainingState:
    """Saves model, optimiser, position and history to one file by atomic rename.

    Saves every `every_s` seconds, and when the process is told to stop (SIGTERM, SIGINT).
    """

    def __init__(self, path: Path, every_s: float):
        self.path, self.every_s = path, every_s
        self.saved_at = time.monotonic()
        self.stop: int | None = None

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
        """Restore in place; returns the steps done, the history of whole epochs, and the sums of
        the current epoch's losses: (0, [], {}) when there is no state.

        Raises:
            CheckpointError: the file is damaged, or does not fit the model.
        """
        if not self.path.exists():
            return 0, [], {}
        remedy = "Delete it, and the training starts from its beginning."
        tensors, metadata = load_tensors(self.path, remedy)
        try:
            split: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}}
            for name, tensor in tensors.items():
                kind, _, key = name.partition("/")
                split[kind][key] = tensor
            load_distinct(model, split["model"])
            optimizer.load_state_dict(_nest(split["optimizer"], optimizer))
            about = About.model_validate(json.loads(metadata["about"]))
            return about.step, about.history, about.sums
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path} is not the state of this training: {error}. {remedy}"
            ) from error

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        history: list[dict],
        sums: Mapping[str, Any],
    ) -> None:
        """Save after `step` steps.

        Raises:
            UserError: the disk is full; the last saved state is intact.
        """
        tensors = {f"model/{name}": t for name, t in distinct(model.state_dict()).items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": t for name, t in values.items()}
        sums = {key: float(value) for key, value in sums.items()}
        about = json.dumps({"step": step, "history": history, "sums": sums})
        save_tensors(self.path, tensors, {"about": about})
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.stop is not None or time.monotonic() - self.saved_at >= self.every_s

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

        With it goes what a process that was killed while it saved left beside it.
        """
        for path in (self.path, *self.path.parent.glob(f".{self.path.name}.*")):
            path.unlink(missing_ok=True)

    @contextmanager
    def catching_signals(self):
        """Turn SIGTERM and SIGINT into a request that the training loop meets after its step."""

        def ask(number, _frame):
            self.stop = number

        previous = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _nest(flat: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict:
    """From "index/name" keys to the form of the optimiser's state dict."""
    state: dict[int, dict] = {}
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for key, tensor in flat.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = tensor
        if tensor.dim() and tensor.shape != parameters[int(index)].shape:
            raise ValueError(f"the optimiser's {key} has another shape than its parameter")
    if len({frozenset(values) for values in state.values()}) > 1:
        raise ValueError("the optimiser's parameters have different values")
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
