"""Which backend a layer uses, and why: what its calibration measured.

Dynamic-k pays below some executed share, which depends on the device, the layer's shape, the number
of tokens and how their selections overlap. None of it is guessed: see `calibration`. Nothing is
read from the device to decide at run time.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

BACKENDS = ("auto", "dense", "dynamic_k")


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

    def pick(self, tokens: int, point: tuple[str, float]) -> str:
        """`dense` or `dynamic_k`, for so many tokens at a rule and its value.

        `auto` follows the choice made for the nearest number of tokens, and is dense where there is
        none, or where the operating point has changed since.
        """
        if self.name != "auto":
            return self.name
        if not self.choices or point != self.point:
            return "dense"
        return self.choices[min(self.choices, key=lambda known: abs(known - tokens))].backend

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
            return f"dense: not calibrated at {rule} = {value:g}, see d2dmoe.kernels.calibration"
        return "; ".join(str(choice) for choice in self.choices.values())
