"""Which backend a layer uses, and why: what its calibration measured.

Dynamic-k pays below some executed share, which depends on the device, the layer's shape, the number
of tokens and how their selections overlap. None of it is guessed: see `kernels.calibration`.
Nothing is read from a GPU to decide at run time. On the CPU the executed share is at hand in every
call, and decides where there is no calibration.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2dmoe.lookup import look_up

DECODE_TOKENS = 16
"""Most tokens of a call that a GPU's kernel for decoding runs; more run by another kernel."""

BACKENDS = ("auto", "dense", "dynamic_k")

CPU_SIZE, CPU_SHARE = 64, 0.6
"""On the CPU, from so many neurons an expert on and up to this executed share, dynamic-k was faster
than dense for 1 to 1,576 tokens of widths 768 and 2,048, with one thread and with two."""


class Choice(NamedTuple):
    """What calibrating a layer came to, for about as many tokens."""

    backend: str  # dense or dynamic_k, the faster
    tokens: int
    density: float  # executed share of the experts
    dense_ms: float
    dynamic_k_ms: float
    device: str

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.tokens} tokens ran {self.density:.0%} of the experts in "
            f"{self.dynamic_k_ms:.3g} ms, dense takes {self.dense_ms:.3g} ms ({self.device})"
        )


@dataclass
class Backend:
    """A layer's backend: a fixed one, or the choice of its calibration."""

    name: str = "auto"  # one of BACKENDS
    choices: dict[int, Choice] = field(default_factory=dict)  # by number of tokens
    point: tuple[str, float] | None = None  # rule and value that the choices were made at

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "name":
            check_backend(value)
        super().__setattr__(key, value)

    def pick(self, tokens: int, point: tuple[str, float]) -> str:
        """The backend for so many tokens at a rule and its value.

        `auto` follows the choice made for the nearest number of tokens, by their ratio, of those
        that the same kernel runs. It stays `auto` where there is none, or where the operating point
        has changed since: see `uncalibrated`.
        """
        if self.name != "auto" or point != self.point:
            return self.name
        numbers = sorted(self.choices)
        if tokens <= DECODE_TOKENS:  # perhaps symbolic: torch.compile compares no truth values
            alike = [number for number in numbers if number <= DECODE_TOKENS]
        else:
            alike = [number for number in numbers if number > DECODE_TOKENS]
        nearest = None
        for number in alike:
            if nearest is None or tokens**2 >= nearest * number:  # past the geometric mean
                nearest = number
        return self.name if nearest is None else self.choices[nearest].backend

    def remember(self, choice: Choice, point: tuple[str, float]) -> None:
        """Keep a choice; those made at another operating point are forgotten."""
        if point != self.point:
            self.choices, self.point = {}, point
        self.choices[choice.tokens] = choice

    def explain(self, point: tuple[str, float]) -> str:
        """Why the layer runs as it does at a rule and its value."""
        if self.name != "auto":
            return f"{self.name}: set so"
        if not self.choices or point != self.point:
            rule, value = point
            return (
                f"dense, but for few and large experts on the CPU: not calibrated at {rule} = "
                f"{value:g}, see d2dmoe.choose_backends"
            )
        return "; ".join(str(choice) for choice in self.choices.values())


def check_backend(name: str) -> None:
    """Refuse a name that is none of `BACKENDS`.

    Raises:
        UnknownName: it is not.
    """
    if name not in BACKENDS:
        look_up(dict.fromkeys(BACKENDS), name, "backend")


def uncalibrated(mask: Tensor, expert_size: int) -> str:
    """The backend of a layer without a calibration, for a mask [..., n] that it selected."""
    if mask.is_cuda or expert_size < CPU_SIZE or torch.compiler.is_compiling():
        return "dense"  # known without a look at the mask
    return "dynamic_k" if mask.float().mean().item() <= CPU_SHARE else "dense"
