"""The library's own training loop: AdamW, warm-up, cosine decay, clipping, on batches of any form.

It is for a model in memory and one process. Whoever wants more takes their own loop and the losses
of `api.losses`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from d2dmoe.api.batch import Batch
from d2dmoe.api.batches import Batches, place_of
from d2dmoe.errors import ConfigError, UserError
from d2dmoe.optimizer import lr_at, make_optimizer
from d2dmoe.seeding import seed_for

Losses = dict[str, Tensor | float]  # by name; "loss", a scalar with gradients, is minimised
ROWS = 100  # of a history, at most


@dataclass(frozen=True)
class FitConfig:
    """Options of a training; the names are the pipeline's."""

    steps: int
    lr: float  # peak
    seed: int
    min_lr: float = 0.0
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0  # largest gradient norm

    def __post_init__(self):
        check_whole("steps", self.steps)
        check_whole("seed", self.seed, least=0)
        check_number("lr", self.lr)


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse an option that is no whole number, or too small a one."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} = {value!r} must be a whole number, at least {least}")


def check_number(name: str, value: Any, or_zero: bool = False) -> None:
    """Refuse an option that is no number above 0."""
    is_number = isinstance(value, Real) and math.isfinite(value)
    if not is_number or not (float(value) > 0 or (or_zero and value == 0)):
        raise ConfigError(f"{name} = {value!r} must be a number above 0{' or 0' * or_zero}")


def fit(
    model: nn.Module,
    trained: nn.Module,
    losses: Callable[[Batch, float], Losses],
    batches: Batches,
    cfg: FitConfig,
    name: str,
) -> list[dict[str, float]]:
    """Minimise `losses(batch, progress)["loss"]` over the trainable parameters of `trained`.

    Batches are read again and again until all steps are done. On CUDA, bfloat16 is used where
    autocast allows it. The random numbers of the caller stay as they are.

    Args:
        model: whose batches they are.
        trained: the module whose parameters are trained.
        losses: scalars of a batch, given the share in [0, 1) of the training that is done.
        batches: from `as_batches`.
        cfg: options of the loop.
        name: of the training, for the progress bar, which only a terminal shows.

    Returns:
        At most 100 rows of equally many steps, the last of fewer: step, lr, the means of all
        losses.

    Raises:
        UserError: nothing is trainable, the batches end too early, or the loss or its gradient is
            not finite; then the parameters are those before the step.
    """
    parameters = _trainable(trained, name)
    optimizer = make_optimizer(trained, cfg)
    device, dtype = place_of(model)
    cuda = device.type == "cuda"
    rows = _Rows(cfg)
    bar = tqdm(total=cfg.steps, desc=name, disable=None)  # None: only at a terminal
    with bar, torch.random.fork_rng([device] if cuda else []), _without_gradients(trained):
        torch.manual_seed(seed_for("batches", cfg.seed))  # of loaders that shuffle
        for step, batch in enumerate(islice(_endless(batches), cfg.steps)):
            torch.manual_seed(seed_for("dropout", cfg.seed, step))
            with torch.autocast(device.type, torch.bfloat16, cuda and dtype != torch.float16):
                values = losses(batch, step / cfg.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, cfg.steps, cfg)
            loss: Any = values["loss"]
            loss.backward()
            if trained is not model:
                _average(parameters, model)
            norm = nn.utils.clip_grad_norm_(parameters, cfg.clip)
            _check_finite(loss.detach() + norm.to(device), name, step, cfg)
            optimizer.step()
            optimizer.zero_grad()
            rows.add(step, values)
            bar.set_postfix(rows.last)
            bar.update()
    return rows.rows


def _trainable(trained: nn.Module, name: str) -> list[nn.Parameter]:
    """
    Raises:
        UserError: there are none, or none of them can have a gradient.
    """
    parameters = [p for p in trained.parameters() if p.requires_grad]
    if not parameters:
        raise UserError(f"{name}: no parameter of the model requires gradients, so none is trained")
    if any(p.is_inference() for p in parameters):
        raise UserError(
            f"{name}: the parameters were made under torch.inference_mode(), where nothing can be "
            "trained: make or load the model outside of it"
        )
    return parameters


def _average(parameters: list[nn.Parameter], model: nn.Module) -> None:
    """Average gradients over the processes of DistributedDataParallel, which does so for the
    parameters of its own forward alone."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return
    processes = torch.distributed.get_world_size(model.process_group)
    for gradient in (p.grad for p in parameters if p.grad is not None):
        torch.distributed.all_reduce(gradient, group=model.process_group)
        gradient /= processes


class _Rows:
    """The history, in rows of equally many steps."""

    def __init__(self, cfg: FitConfig):
        self._cfg, self._every = cfg, math.ceil(cfg.steps / ROWS)
        self._sums: dict[str, float] = {}
        self.rows: list[dict[str, float]] = []

    def add(self, step: int, values: Losses) -> None:
        """The losses of a step, counted from 0."""
        for key, value in values.items():
            value = float(value.detach() if isinstance(value, Tensor) else value)
            self._sums[key] = self._sums.get(key, 0.0) + value
        steps, done = step % self._every + 1, step + 1
        if steps == self._every or done == self._cfg.steps:
            means = {key: value / steps for key, value in self._sums.items()}
            self.rows.append({"step": done, "lr": lr_at(step, self._cfg.steps, self._cfg)} | means)
            self._sums = {}

    @property
    def last(self) -> dict[str, float]:
        return self.rows[-1] if self.rows else {}


@contextmanager
def _without_gradients(trained: nn.Module) -> Iterator[None]:
    """Parameters hold no gradients before, nor after."""
    trained.zero_grad()
    try:
        yield
    finally:
        trained.zero_grad()


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers of half precision in float32, so that small updates are not lost to
    rounding; afterwards in their own again. They stay the same objects."""
    tensors = (*model.parameters(), *model.buffers())
    half = {x: x.dtype for x in tensors if x.dtype in (torch.bfloat16, torch.float16)}
    for tensor in half:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in half.items():
            tensor.data = tensor.data.to(dtype)


def _endless(batches: Batches) -> Iterator[Batch]:
    while True:
        yield from batches


def _check_finite(values: Tensor, name: str, step: int, cfg: FitConfig) -> None:
    if not values.isfinite():
        raise UserError(
            f"{name}: the loss or its gradient is {float(values)} at step {step + 1}. Lower the "
            f"learning rate (lr = {cfg.lr}), and look for NaN in model and batches."
        )
