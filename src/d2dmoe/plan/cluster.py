"""What jobs ask of a cluster: memory and time by the size of what they train or measure, and a GPU.

Estimates, on the safe side; no result and no digest depends on them. A job that was given too
little is submitted again with more (`attempt`), and a training then goes on from its saved state.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.plan.lineage import Step

LARGEST_VOCABULARY = 256_000  # of ready-made tokenizers: they are not read yet
PROGRAM_MB = 3000  # Python, torch and CUDA's host side
READER_MB = 500  # a process that reads samples
START_MIN = 10  # of a job: imports over a network, data, a compilation
LONGEST_MIN = 24 * 60  # what most partitions grant; a training goes on in the next attempt
SPEED = {True: 1e13, False: 5e9}  # FLOPs per second that a GPU, or one CPU thread, does at least
TRAINING = 6  # FLOPs per parameter and token: two forward, four backward
MEASURING = 2
TRAINED_BYTES = 28  # per parameter: weight, gradient, two moments, and three of these being saved
MEASURED_BYTES = 8  # two copies of the weights, while they are loaded
FP32 = 4
ITERATIONS, CENTRES = 20, 1024  # of a clustering


@dataclass(frozen=True)
class Needs:
    """What a job asks for."""

    mem_mb: int
    runtime: int  # minutes

    def times(self, attempt: int) -> "Needs":
        """Those of a later attempt."""
        return Needs(self.mem_mb * attempt, min(self.runtime * attempt, LONGEST_MIN))

    def together(self, processes: int) -> "Needs":
        """Those of a job of several processes, on each machine."""
        return Needs(self.mem_mb * processes, self.runtime)


@dataclass(frozen=True)
class Size:
    """Of a stage's model and of a sample of its data; upper bounds."""

    parameters: int
    met: int  # of these, by each token
    tokens: int  # per sample
    kept: int  # numbers per token that a layer keeps for the backward pass
    layers: int


def size_of(step: Step, data: Any) -> Size:
    """The size of a stage's model; `data` are the options of its dataset."""
    models = (getattr(s.cfg, "model", None) for s in reversed(step.steps))
    model: Any = next(filter(None, models))
    attention = model.heads * getattr(model, "head_dim", model.d_model // model.heads)
    layer = model.d_model * (4 * attention + 3 * model.d_ff)  # of a gated FFN
    if data.kind == "images":
        tokens, embedded = (data.image_size // model.patch_size) ** 2 + 1, 0
    else:
        vocabulary = data.tokenizer.vocab_size or LARGEST_VOCABULARY
        tokens, embedded = data.length, (vocabulary + model.positions) * model.d_model
    blocks = model.layers * layer * 3 // 2  # with routers, projections' MLPs, exits
    return Size(
        parameters=blocks + embedded,
        met=blocks + (embedded if data.kind == "corpus" else 0),
        tokens=tokens,
        kept=16 * model.d_model + 4 * model.d_ff + 2 * model.heads * tokens,
        layers=model.layers,
    )


def training_needs(step: Step, data: Any, samples: int, data_mb: float, gpu: bool) -> Needs:
    """What a training asks for.

    Args:
        step: its stage, whose options are a `TrainingConfig`.
        data: options of its dataset.
        samples: in the training split.
        data_mb: size of its input files.
        gpu: whether it computes on a GPU.
    """
    size = size_of(step, data)
    cfg: Any = step.cfg
    flops = TRAINING * size.met * size.tokens * cfg.batch_size * cfg.steps(samples)
    together = size.tokens * (cfg.batch_size // cfg.accumulate)
    activations = 0 if gpu else together * size.kept * size.layers * FP32
    memory = TRAINED_BYTES * size.parameters + activations
    readers = cfg.workers * READER_MB * 2**20
    return _needs(memory + readers, data_mb, flops / cfg.threads, gpu)


def measuring_needs(
    step: Step, data: Any, samples: int, data_mb: float, gpu: bool, points: int, batch_size: int
) -> Needs:
    """What a job asks for that runs a stage's model over a split, once for each of its `points` of
    operation, on one CPU thread or a GPU; the other arguments are those of `training_needs`."""
    size = size_of(step, data)
    flops = MEASURING * size.met * size.tokens * samples * points
    activations = 0 if gpu else size.tokens * batch_size * size.kept * FP32
    return _needs(MEASURED_BYTES * size.parameters + activations, data_mb, flops, gpu)


def converting_needs(step: Step, data: Any) -> Needs:
    """What a job asks for that makes a model of another without data, on one CPU thread: time for a
    clustering, which takes the distances of all neurons to all centres in each iteration."""
    size = size_of(step, data)
    flops = MEASURING * ITERATIONS * CENTRES * size.met
    return _needs(MEASURED_BYTES * size.parameters, 0, flops, False)


def _needs(memory: float, data_mb: float, flops: float, gpu: bool) -> Needs:
    minutes = START_MIN + flops / SPEED[gpu] / 60
    return Needs(
        mem_mb=round(PROGRAM_MB + memory / 2**20 + 2 * data_mb),
        runtime=min(round(minutes), LONGEST_MIN),
    )


def gpu_request(asked: str, gpus: int = 1) -> dict[str, Any]:
    """The resource by which a job asks SLURM for its GPUs: `gres`, or `gpu` for --gpus; none where
    nothing is asked for, or where the cluster has no GPU.

    Args:
        asked: the resource and its value, as gres=gpu:1 or gpu=1; empty: none.
        gpus: so many times that, on each machine.
    """
    name, _, value = asked.partition("=")
    if not value or not _cluster_has_gpus():
        return {}
    kind, colon, number = value.rpartition(":")
    if number.isdigit():
        value = f"{kind}{colon}{int(number) * gpus}"
    return {name: int(value) if value.isdigit() else value}


def several(resources: ResourcesConfig, asked: str) -> dict[str, Any]:
    """What a job asks for that several processes share: GPUs of a machine, and of SLURM `asked`."""
    return {"device": resources.gpu, "processes": resources.gpu} | gpu_request(asked, resources.gpu)


def machines(resources: ResourcesConfig, gpu: bool) -> dict[str, int]:
    """What a training asks SLURM for besides; nothing where one machine is enough. Where there are
    no GPUs, tasks say that all of them are wanted."""
    if resources.nodes == 1:
        return {}
    return {"nodes": resources.nodes} | ({} if gpu else {"tasks": resources.nodes})


def _cluster_has_gpus() -> bool:
    """Whether a node has any, as far as one can ask here."""
    if not shutil.which("sinfo"):
        return True
    command = ["sinfo", "--noheader", "--format=%G"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    return re.search(r"\bgpu:([^:,(\s]+:)?[1-9]", listed) is not None
