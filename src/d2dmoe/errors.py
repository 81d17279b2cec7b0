"""Errors that a user can mend: one message that names the cause and the remedy."""

import re
import sys
from operator import index
from pathlib import Path
from typing import Any

LONGEST = 2000  # characters of a message; what libraries and users write can be of any length
END = 500  # of these, characters of the message's end, where the remedy stands
# What CUDA, cuBLAS and Triton say of it, which ask for memory without torch.
GPU_FULL = re.compile(r"CUDA(?: error|\])?: out of memory|CUBLAS_STATUS_ALLOC_FAILED")


def shortened(message: str) -> str:
    """A message of at most `LONGEST` characters and a note; its middle is left out."""
    left_out = len(message) - LONGEST
    if left_out <= 0:
        return message
    return f"{message[: LONGEST - END]} … ({left_out} characters) … {message[-END:]}"


def full_memory(error: BaseException) -> str | None:
    """Whose memory is full, "the GPU's" or "the machine's"; None for another error.

    What torch raises is told without an import of it: who has not imported it did not fail in it.
    """
    torch: Any = sys.modules.get("torch")
    text = str(error) if isinstance(error, RuntimeError) else ""
    if (torch and isinstance(error, torch.OutOfMemoryError)) or GPU_FULL.search(text):
        return "the GPU's"
    on_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text
    return "the machine's" if on_cpu else None


def whole(value: Any, name: str, least: int = 1) -> int:
    """A whole number of at least `least`; the message calls it by its name.

    Raises:
        ModelError: it is none.
    """
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ModelError(f"{name} = {value!r}: must be a whole number of at least {least}")
    return number


class UserError(Exception):
    """Something outside the code is wrong; the message says what, and what to do about it."""

    def __init__(self, message: str):
        super().__init__(shortened(message))


class ConfigError(UserError):
    """A configuration value is unknown, of the wrong type, or impossible."""


class DataError(UserError):
    """A dataset or a table is missing, damaged, or not of the form that it should have."""


class CheckpointError(UserError):
    """A saved model or training state is missing, damaged, or does not fit."""


class ModelError(UserError, ValueError):
    """A model cannot be traced, converted or run as it was asked for."""


class ResultError(UserError):
    """A file in results/ is not as the job that it belongs to left it."""

    def __init__(self, path: Path, kind: str, detail: str):
        """`kind` is damaged, foreign (its job did not make it) or stale (of other sources)."""
        self.kind = kind
        super().__init__(
            f"{path} is {kind}: {detail}. Delete it and run the same command again: the step that "
            "makes it is then repeated."
        )


class UnknownName(UserError, ValueError):
    """A name that a table does not hold; the message lists those that it holds."""


EXTRAS = {  # of the package, by the modules that they bring
    "tokenizers": "hf",
    "transformers": "hf",
    "PIL": "vision",
    "timm": "vision",
    "torchvision": "vision",
    "rich": "cli",
    "typer": "cli",
    "datasets": "pipeline",
    "matplotlib": "pipeline",
    "pandas": "pipeline",
    "psutil": "pipeline",
    "pyarrow": "pipeline",
    "scipy": "pipeline",
    "sklearn": "pipeline",
    "snakemake": "pipeline",
    "yaml": "pipeline",
    "lm_eval": "lm-eval",
}


class MissingExtra(UserError, ImportError):
    """A library is not installed that belongs to an extra of this package."""


def missing_extra(error: ImportError) -> MissingExtra | None:
    """The error to raise where a module cannot be imported that an extra brings; None of others."""
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRAS:
        return None
    return MissingExtra(
        f'{module} is not installed. Install it with `pip install "d2dmoe[{EXTRAS[module]}]"`.'
    )
