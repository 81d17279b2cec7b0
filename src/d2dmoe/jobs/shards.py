"""A training state of several processes: a folder into which each writes what it has, by
torch.distributed.checkpoint. Any number of processes can read it, one too.

    STATE.shards/120/shard-….safetensors    tensors, or parts of them
                     about.txt              a digest of the rest of it; JSON

The last is written last, and holds the SHA-256 of the others: what a killed process left has none.
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
from d2dmoe.io.files import sha256, write_atomically
from d2dmoe.processes import leads, place, told

ABOUT = "about.txt"


def save_shards(folder: Path, step: int, tensors: Mapping[str, Tensor], about: str) -> None:
    """Save the tensors of all processes, of which each has a copy or its part, and a text; then
    remove the states of other steps.

    Raises:
        UserError: the disk is full, or the folder cannot be written; an earlier state is intact.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    target = folder / str(step)
    if leads():
        shutil.rmtree(target, ignore_errors=True)  # what a killed process left
    told(None)
    try:
        writer = dcp.HuggingFaceStorageWriter(str(target), save_distributed=True)
        dcp.save(dict(tensors), storage_writer=writer)
        own = target.glob(f"shard-{place().rank + 1:05d}-*")
        parts = told({path.name: sha256(path) for path in own})
    except (OSError, CheckpointException) as error:
        raise UserError(
            f"cannot save {target}: {error}. An earlier state is intact. To go on: free some "
            "space, or check the folder's permissions and the disk, then run the same command "
            "again."
        ) from error
    if leads():
        sums = {name: digest for part in parts for name, digest in part.items()}
        text = json.dumps({"about": about, "sha256": sums})
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_atomically(target / ABOUT, lambda p: p.write_text(f"{digest}\n{text}\n"))
        for other in folder.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
    told(None)


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
