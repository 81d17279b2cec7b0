"""Kills one process of a training again and again, and checks that nothing is lost.

    uv run python tools/kill_processes.py --kills 20

torchrun starts two processes that train a small model and save their state after every step; at a
random moment one of them gets SIGKILL. The other must end too, with an error, and the next attempt
must go on. The losses of all attempts together must be those of an undisturbed training.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from d2dmoe.config.model import ViTConfig
from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.data.share import Share
from d2dmoe.data.splits import ImageSplit
from d2dmoe.jobs.state import TrainingState
from d2dmoe.models.build import create_model
from d2dmoe.processes import joined, leads, place
from d2dmoe.training import cross_entropy_loss, fit

CLASSES = ["a", "b", "c"]
SIZES = {"patch_size": 4, "layers": 2, "d_model": 16, "heads": 2, "d_ff": 32}
ENDS_S = 60.0  # within which the others must have ended


def train(folder: Path, steps: int, shard: bool, pause_s: float) -> None:
    """Train, and write the history."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (8,), generator=generator)
    split = ImageSplit(labels, CLASSES, [0.5] * 3, [0.25] * 3, images.__getitem__)
    cfg = TaskTrainingConfig(epochs=steps, lr=1e-3, batch_size=8)
    torch.manual_seed(0)
    about = {"image_size": 8, "classes": CLASSES}
    _, model = create_model(ViTConfig(architecture="vit", dropout=0.1, **SIZES), about)

    def losses(batch, _progress):
        time.sleep(pause_s)
        return {"loss": cross_entropy_loss(model(**batch[0]), batch[1])}

    device = torch.device("cpu")
    history = fit(
        model.train(),
        losses,
        TrainingBatches(split, cfg, 0, device, Share(*place())),
        cfg,
        name="killed",
        state=TrainingState(folder / "state.safetensors", every_s=0),
        how=ResourcesConfig(shard=shard),
    )
    if leads():
        (folder / "history.json").write_text(json.dumps(history))


def start(folder: Path, options: argparse.Namespace) -> psutil.Popen:
    """torchrun of two processes of this script."""
    command = [sys.executable, "-m", "d2dmoe.jobs.launch", "--standalone", "--nnodes=1"]
    command += ["--nproc-per-node=2", __file__, "--folder", str(folder)]
    command += ["--steps", str(options.steps), *["--shard"] * options.shard]
    with (folder / "log").open("a") as log:
        return psutil.Popen(command, stdout=log, stderr=log)


def workers(launcher: psutil.Popen) -> list[psutil.Process]:
    try:
        return launcher.children()
    except psutil.NoSuchProcess:
        return []


def kill_one(launcher: psutil.Popen, draw: random.Random, folder: Path) -> bool:
    """Kill one process some steps after the attempt has begun to save; whether there was one."""
    before = saved(folder)
    while saved(folder) == before:
        if launcher.poll() is not None:
            return False
        time.sleep(0.02)
    time.sleep(draw.uniform(0.0, 0.6))
    found = workers(launcher)
    if len(found) < 2:
        return False
    draw.choice(found).kill()
    return True


def saved(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("state.shards/*/about.txt"))


def main() -> None:
    """Report how many kills there were, and whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of the training; 20 for each kill if not given")
    parser.add_argument("--shard", action="store_true", help="weights in parts (FSDP2)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and processes")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.folder:  # one of the processes
        with joined():
            train(options.folder, options.steps, options.shard, pause_s=0.02)
        return
    options.steps = options.steps or 20 * max(1, options.kills)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        whole, folder = Path(name) / "whole", Path(name) / "killed"
        whole.mkdir()
        folder.mkdir()
        train(whole, options.steps, shard=False, pause_s=0)
        kills = run(folder, options)
        expected, found = (json.loads((x / "history.json").read_text()) for x in (whole, folder))
    worst = max(
        abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(found, expected, strict=True)
    )
    print(f"{kills} kills, {len(found)} steps, largest relative difference of a loss {worst:.1e}")
    sys.exit(worst > 1e-5 or kills < options.kills)


def run(folder: Path, options: argparse.Namespace) -> int:
    """Kill until all kills are done, then let the training end; returns how many there were."""
    draw, kills = random.Random(options.seed), 0
    while not (folder / "history.json").exists():
        launcher = start(folder, options)
        if kills < options.kills and kill_one(launcher, draw, folder):
            kills += 1
            began = time.monotonic()
            code = launcher.wait(ENDS_S)
            print(f"{kills}: ended with {code} after {time.monotonic() - began:.1f} s", flush=True)
        elif launcher.wait() and not (folder / "history.json").exists():
            sys.exit(f"an attempt that was not killed failed:\n{(folder / 'log').read_text()}")
    return kills


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
