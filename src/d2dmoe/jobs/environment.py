"""What a job runs on, and with which versions of code."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("torch", "triton", "numpy", "safetensors", "tokenizers", "torchvision", "transformers")


def cpu_name() -> str:
    """The processor as its maker calls it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, CPUs and memory of the machine, in MiB, and the GPUs that the process has used."""
    found: dict[str, Any] = {"cpu": cpu_name(), "cpus": os.cpu_count()}
    found["memory_mib"] = psutil.virtual_memory().total >> 20
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        count = range(torch.cuda.device_count())
        used = [i for i in count if torch.cuda.max_memory_allocated(i)]
        found["gpu"] = ", ".join(map(torch.cuda.get_device_name, used))
        found["gpu_peak_mib"] = max(map(torch.cuda.max_memory_allocated, used), default=0) >> 20
    return found


def versions() -> dict[str, str | None]:
    """Of Python and of the libraries that results depend on; None for those that are missing."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """The git commit of a folder, `-dirty` if files of it have been edited; None without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
