"""Flip random bits in copies of all kinds of results, and count which are named before use.

    python tools/flip_bytes.py --flips 300

takes the results of the folder that it is called in; `snakemake` must have made some there. A state
of a training, and the notes of its attempts, are made of the first model. Each flip is followed by
what a job does with such a file: its inputs are checked, models are loaded, splits opened, states
restored. A flip is named if that ends in an error that names file and remedy, without effect if
what was read is the same as before; all else is silent, and the command fails.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from d2dmoe.checkpoint import load_model
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.splits import open_split
from d2dmoe.errors import UserError
from d2dmoe.io.checksums import check_all, checksum_file
from d2dmoe.jobs.attempts import load_attempts, save_attempts
from d2dmoe.jobs.state import TrainingState
from d2dmoe.training import make_optimizer

CFG = TrainingConfig(epochs=1, lr=0.001, batch_size=1)
Read = Callable[[Path], Any]  # what a job does with a file; gives what can be compared


def read_checked(path: Path) -> Any:
    """As a job does with each of its inputs."""
    return check_all([str(path)])


def read_model(path: Path) -> Any:
    """As the library does too, where no job has checked the file."""
    model, spec = load_model(path)
    return spec, {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def read_split(path: Path) -> Any:
    """The first samples, and their description."""
    split = open_split(path.parent, path.stem)
    return split.about, [tensor.tolist() for tensor in split.read(torch.arange(8))]


def read_checksums(path: Path) -> Any:
    """Of the result beside which they lie."""
    return read_checked(path.with_name(path.name[1:].removesuffix(".sha256")))


def make_state(model_path: Path, path: Path) -> Read:
    """Save a state of a model after one step; returns what restores it."""
    model, _spec = load_model(model_path)
    optimizer = make_optimizer(model, CFG)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = TrainingState(path, 0)
    state.save(model, optimizer, 1, [{"epoch": 1.0, "loss": 0.5}], {})
    state.wait()

    def restore(path: Path) -> Any:
        fresh, _spec = load_model(model_path)
        told = TrainingState(path, 0).load(fresh, make_optimizer(fresh, CFG))
        return told, {name: tensor.tolist() for name, tensor in fresh.state_dict().items()}

    return restore


def files_by_kind(results: Path) -> dict[str, tuple[list[Path], Read]]:
    """All files of each kind, and how a job reads them."""
    models = sorted(results.glob("models/**/model.safetensors"))
    state, notes = results / ".state/a.safetensors", results / ".state/a.json"
    restore = make_state(models[0], state)
    save_attempts(notes, [{"host": "here", "began": "2025-01-01T00:00:00+00:00", "s": 100.0}])
    tables = sorted(results.glob("**/*.csv"))
    splits = sorted(results.glob("data/**/*.safetensors"))
    others = [*results.glob("**/*.json"), *results.glob("**/*.yaml"), *results.glob("**/*.png")]
    others = sorted(path for path in others if path != notes)
    sums = [checksum_file(path) for path in (*models, *splits, *tables, *others)]
    return {
        "models, by jobs": (models, read_checked),
        "models, by the library": (models, read_model),
        "training states": ([state], restore),
        "datasets, by jobs": (splits, read_checked),
        "datasets, by the library": (splits, read_split),
        "tables": (tables, read_checked),
        "records, descriptions, figures": (others, read_checked),
        "checksums": (sums, read_checksums),
        "notes of attempts": ([notes], load_attempts),
    }


@contextmanager
def flipped(path: Path, rng: random.Random) -> Iterator[None]:
    """One bit of a file is another for a while."""
    whole, times = path.read_bytes(), path.stat()
    changed = bytearray(whole)
    changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def outcome(path: Path, read: Read, rng: random.Random) -> str:
    """What comes of a flip."""
    before = read(path)
    with flipped(path, rng):
        try:
            after = read(path)
        except UserError as error:
            place = str(path.with_name(path.name.removeprefix(".").removesuffix(".sha256")))
            told = place in str(error) and ("Delete it" in str(error) or "Rerun" in str(error))
            return "named" if told else f"badly named: {error}"
        except Exception as error:
            return f"raw {type(error).__name__}: {error}"
    return "without effect" if after == before else "silent"


def main() -> None:
    """Print the counts; fail if a flip was neither named nor without effect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=300, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree("results", Path(folder) / "results")
        os.chdir(folder)
        kinds = files_by_kind(Path("results"))
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
        for index in range(options.flips):
            kind = list(kinds)[index % len(kinds)]
            files, read = kinds[kind]
            path = rng.choice(files)
            found = outcome(path, read, rng)
            if found not in ("named", "without effect"):
                print(f"{path}: {found}")
                found, bad = "wrong", bad + 1
            counts[kind][found] += 1
        os.chdir("/")
    for kind, found in counts.items():
        print(f"{kind}: {found['named']} named, {found['without effect']} without effect")
    print(f"{options.flips} flips, {bad} of them used in silence or badly told")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
