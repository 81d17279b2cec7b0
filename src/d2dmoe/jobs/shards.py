"""A training state of several processes: a folder into which each writes its part, in the format
of torch.distributed.checkpoint. Any number of processes can read it with that, one too.

    STATE.shards/120/shard-….safetensors    tensors, or parts of them and where these lie
                     about.txt              a digest of the rest of it; JSON

The last is written last, and holds the SHA-256 of the others: what a killed process left has none.

Its own writer takes a process's part three times in memory, this one a piece at a time.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.io.files import sha256, write_atomically, write_own, writing
from d2dmoe.io.tensors import in_parts, write_tensors
from d2dmoe.processes import leads, place, told

ABOUT = "about.txt"
Offsets = dict[str, list[int]]  # of parts in their tensors, by name


def own_parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Offsets]:
    """What this process saves: its parts of tensors that lie in parts, and its share of the others,
    which all processes have."""
    whole = [name for name, tensor in tensors.items() if not in_parts(tensor)]
    whole.sort(key=lambda name: (-tensors[name].nbytes, name))  # for shares of like sizes
    own = {name: tensors[name] for name in whole[place().rank :: place().size]}
    offsets = {name: [0] * tensor.dim() for name, tensor in own.items()}
    for name in tensors.keys() - {*whole}:
        parted: Any = tensors[name]
        part = parted.to_local()
        if part.numel():  # a tensor may have fewer rows than there are processes
            own[name] = part
            offsets[name] = [*parted.__create_chunk_list__()[0].offsets]
    return own, offsets


def save_shards(
    folder: Path, step: int, tensors: Mapping[str, Tensor], offsets: Offsets, about: str
) -> None:
    """Save the own parts of all processes, and a text; then remove the states of other steps. May
    be done by a thread beside the training.

    Raises:
        UserError: the disk is full, or the folder cannot be written, in any of the processes; an
            earlier state is intact.
    """
    target = folder / str(step)
    metadata = {
        "DCP_SHARDING_INFO": json.dumps({n: {"saved_offsets": o} for n, o in offsets.items()}),
        "DCP_VERSION": "1.0",
        "format": "pt",
    }

    def write() -> dict[str, str]:
        path = target / f"shard-{place().rank + 1:05d}.safetensors"
        write_own(path, lambda p: write_tensors(p, tensors, metadata))
        with writing(path):
            return {path.name: sha256(path)}

    def finish() -> None:
        if not leads():
            return
        sums = {name: digest for part in parts for name, digest in part.items()}
        text = json.dumps({"about": about, "sha256": sums})
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_atomically(target / ABOUT, lambda p: p.write_text(f"{digest}\n{text}\n"))
        for other in folder.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    if leads():
        shutil.rmtree(target, ignore_errors=True)  # what a killed process left
    told(None, aside=True)
    parts = _by_all(write)
    _by_all(finish)


def _by_all(do: Callable[[], Any]) -> list[Any]:
    """What each process makes; where one cannot, it cannot be done in any."""
    try:
        own: Any = do()
    except UserError as error:
        own = error
    every = told(own, aside=True)
    for made in every:
        if isinstance(made, UserError):
            raise made
    return every


def latest(folder: Path) -> Path | None:
    """The state of the most steps in a folder; None where there is none."""
    whole = [path.parent for path in folder.glob(f"*/{ABOUT}") if path.parent.name.isdigit()]
    return max(whole, key=lambda path: int(path.name), default=None)


def load_shards(
    state: Path, empty: Callable[[str, tuple[int, ...]], Tensor], remedy: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state, and its text.

    Args:
        state: what `latest` found.
        empty: makes the tensor that a name and a shape are read into; of one that lies in parts on
            the processes, this one's is read.
        remedy: completes the error message.

    Raises:
        CheckpointError: a file is damaged or missing.
    """
    try:
        digest, text, _end = (state / ABOUT).read_text().split("\n")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError(ABOUT)
        content = json.loads(text)
        names = [*content["sha256"]]
        own = names[place().rank :: place().size]  # each is checked by one process
        wrong = [name for name in own if sha256(state / name) != content["sha256"][name]]
        found = {path.name for path in state.glob("*.safetensors")}
        wrong = [name for each in told(wrong) for name in each] + sorted(found ^ set(names))
        if wrong:
            raise ValueError(", ".join(wrong))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{state} is damaged ({error}). {remedy}") from error
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(state))
    described: Any = reader.read_metadata().state_dict_metadata
    tensors = {name: empty(name, tuple(about.size)) for name, about in described.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that one process reads it
        dcp.load(tensors, storage_reader=reader)
    return tensors, content["about"]
