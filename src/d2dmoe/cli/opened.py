"""A model as commands have it: with what makes its inputs of a person's data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from d2dmoe.cli.encoders import Encode
from d2dmoe.errors import CheckpointError


@dataclass(frozen=True)
class Loading:
    """How models are loaded."""

    device: str = "auto"  # cpu, cuda, …; auto is a GPU where there is one
    max_length: int = 128  # tokens after which texts are cut off
    yes: bool = False  # whether large files are fetched without a question


def _no_file(_name: str) -> None:
    return None


@dataclass
class Opened:
    """A model, and what it needs to be used."""

    name: str  # as it was given
    model: nn.Module
    kind: str  # a key of `tasks.TASKS`
    make_encoder: Callable[[], Encode]  # not before it is needed: inspect does without
    classes: Sequence[str] = ()  # of a classifier's outputs, where they have names
    made_of: str | None = None  # the name of a model of timm or torchvision
    companion: Callable[[str], Path | None] = _no_file  # a file beside the weights
    kept: dict[str, Any] = field(default_factory=dict)  # what `encode` needs and is saved

    @cached_property
    def encode(self) -> Encode:
        """What makes inputs of texts or images.

        Raises:
            UserError: there is no tokenizer or image processor, or inputs are of another kind.
        """
        return self.make_encoder()


def attempt(what: str, remedy: str, call: Callable[[], Any]) -> Any:
    """What a call gives that fails in as many ways as the libraries below it know.

    Raises:
        CheckpointError: it fails; the message begins with `what` and ends with `remedy`.
    """
    try:
        return call()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{what} ({type(error).__name__}: {first_line(error)}). {remedy}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, without what it lists."""
    return (str(error).strip().splitlines() or ["no message"])[0]
