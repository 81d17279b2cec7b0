"""What all benchmarks share: number formats, the machine's name, the width of equal FLOPs."""

import torch

from d2dmoe.jobs.environment import cpu_name

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def width(d_ff: int, fraction: float) -> int:
    """Hidden neurons of a dense FFN that executes a share; a multiple of 8, as fast products need,
    where the FFN has so many."""
    step = 8 if d_ff % 8 == 0 else 1
    return step * max(1, round(fraction * d_ff / step))


def machine(device: torch.device) -> dict[str, str]:
    """The columns `device`, `torch` and `triton`: what the times are of."""
    try:
        import triton
    except ImportError:
        triton = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    version = triton.__version__ if triton else "-"
    return {"device": name, "torch": torch.__version__, "triton": version}


def _cpu() -> str:
    """The processor and the threads in use."""
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
