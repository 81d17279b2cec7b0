"""How a stage runs: its seed, device, threads, data and saved training state."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.errors import UserError
from d2dmoe.jobs.device import claim_device, make_deterministic
from d2dmoe.jobs.job import STATES, job
from d2dmoe.jobs.launch import launch, launched
from d2dmoe.jobs.progress import logger
from d2dmoe.jobs.state import TrainingState
from d2dmoe.processes import joined, noticing_losses, place

LOCKS = Path("results/.locks")  # a file per GPU


@dataclass(frozen=True)
class Run:
    """What a stage needs beside its parent and its options."""

    seed: int
    device: torch.device
    data: Path = Path()  # folder of the prepared dataset
    state: TrainingState | None = None  # where an interrupted training goes on
    log_every_s: float = 10.0
    resources: ResourcesConfig = ResourcesConfig()
    graphs: bool = False  # where steps can be recorded as CUDA graphs, they are


@contextmanager
def stage_run(snakemake: Any) -> Iterator[Run]:
    """A job that computes with torch.

    Args:
        snakemake: the object that the workflow gives to scripts. Used are `params` (the stage's
            options `cfg`, the digest of its code and whatever else names the result),
            `wildcards.seed`, `resources.device`, `config["runtime"]`, the first `log`, all inputs,
            and of these `data`, the files of the dataset, where there are any.
    """
    with _processes(snakemake):
        with job(snakemake) as identity, noticing_losses():
            run = _make_run(snakemake, identity)
            yield run
            if torch.cuda.is_available():
                peak = torch.cuda.max_memory_allocated() / 2**20
                logger.info("peak memory on the GPU %.0f MiB", peak)
        assert run.state is not None
        run.state.remove()  # now that the result is there, with its checksums


def _processes(snakemake: Any) -> AbstractContextManager:
    """Of a job that asks for several, this one among the others; started now, if it is alone.

    Used are `resources.processes`, those of a machine, and `resources.nodes`.
    """
    gpus = torch.cuda.device_count()
    wanted = snakemake.resources.get("processes", 1)
    processes, nodes = min(wanted, gpus or wanted), snakemake.resources.get("nodes", 1)
    if processes * nodes == 1:
        return nullcontext()
    if not launched():
        launch(processes, nodes)
    return joined("cpu:gloo,cuda:nccl" if gpus else "gloo")


@contextmanager
def timed_job(snakemake: Any) -> Iterator[torch.device]:
    """A job that measures wall-clock time, on its GPU or with all of its CPU threads.

    Args:
        snakemake: as for `stage_run`; `threads` are the CPU's, `resources.device` asks for a GPU.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    with job(snakemake):
        gpu = bool(snakemake.resources.get("device", 0))
        if gpu and not torch.cuda.is_available():
            raise UserError("this benchmark needs a CUDA device, and torch sees none")
        torch.set_num_threads(snakemake.threads)
        yield claim_device(LOCKS, gpu)


def _make_run(snakemake: Any, identity: str) -> Run:
    cfg, seed = snakemake.params.cfg, snakemake.wildcards.get("seed", 0)
    make_deterministic(cfg.get("threads", 1))
    runtime = snakemake.config.get("runtime", {})
    data = snakemake.input.get("data")
    shared = runtime.get("jobs_per_gpu", 1) if place().size == 1 else 1  # each its own
    device = claim_device(LOCKS, bool(snakemake.resources.get("device", 0)), shared)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Run(
        seed=int(seed),
        device=device,
        data=Path(data[0]).parent if data else Path(),
        state=TrainingState(STATES / f"{identity}.safetensors", runtime.get("save_every_s", 60.0)),
        log_every_s=runtime.get("log_every_s", 10.0),
        resources=ResourcesConfig.model_validate(snakemake.config.get("resources", {})),
        graphs=runtime.get("graphs", False),
    )
