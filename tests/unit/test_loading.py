"""Laws of how samples reach a training: any number of processes deals them out without overlap or
loss, workers change nothing, and what cannot be read is named."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small import others_later

from d2dmoe.benchmark.loading import damaged, image_rates, synthetic_tree, token_rates
from d2dmoe.config.data import ImagesConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.batches import MOST_READERS, TrainingBatches, iterate, readers
from d2dmoe.data.prepare import prepare
from d2dmoe.data.share import WHOLE, Share
from d2dmoe.data.splits import CorpusSplit, ImageSplit, Split, TextSplit, open_split
from d2dmoe.errors import DataError

CPU = torch.device("cpu")
AUGMENT = {"flip": True, "crop_padding": 2, "random_resized_crop": True}
MIXING = [{}, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]


def shares(world: int) -> list[Share]:
    return [Share(rank, world) for rank in range(world)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with a tree of 20 JPEGs of several sizes, and with what is prepared of it."""
    root, rng = tmp_path_factory.mktemp("root"), np.random.default_rng(0)
    for part, each in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            folder = root / "animals" / part / name
            folder.mkdir(parents=True)
            for i in range(each):
                shape = (*rng.integers(30, 60, 2), 3)
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                image.save(folder / f"{i}.jpeg")
    prepare(config(), root, root / "out")
    return root


def config() -> ImagesConfig:
    options = {"image_size": 16, "validation": 2, "mean": [0.5] * 3, "std": [0.25] * 3}
    source = {"kind": "images", "source": "path:animals", "in_memory": False}
    return ImagesConfig.model_validate(source | options)


@pytest.fixture(scope="module")
def decoded(root) -> Split:
    """Images that are decoded each time that they are read: 14."""
    return open_split(root / "out", "train", root)


def kept() -> ImageSplit:
    images = torch.randint(0, 256, (14, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return ImageSplit(
        torch.arange(14),
        [str(i) for i in range(14)],
        [0.5] * 3,
        [0.25] * 3,
        images.byte().__getitem__,
    )


def batches(split: Split, share: Share = WHOLE, **options) -> TrainingBatches:
    values = {"epochs": 3, "lr": 0.1, "batch_size": 5, "augment": AUGMENT}
    return TrainingBatches(split, TrainingConfig.model_validate(values | options), 7, CPU, share)


# Dealing out


@pytest.mark.parametrize("world", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 64])
def test_shares_are_the_batch_in_its_order_and_as_large_as_each_other(world, count):
    batch = torch.arange(count)
    dealt = [share.of(batch) for share in shares(world)]
    assert torch.equal(torch.cat(dealt), batch)
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [len(range(count)[share.run(count)]) for share in shares(world)]


@pytest.mark.parametrize(("rank", "world"), [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_is_one_of_its_world(rank, world):
    with pytest.raises(ValueError, match="none of"):
        Share(rank, world)


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("world", others_later([2, 3, 8], [3]))
def test_processes_together_train_on_what_one_would(decoded, mixing, world):
    """To the bit: the same images with the same changes, also where there are more processes than
    samples, and where an image is mixed with another process's."""
    for split in (decoded, kept()):
        alone = list(batches(split, **mixing).stream(0))
        dealt = [list(batches(split, share, **mixing).stream(0)) for share in shares(world)]
        assert len(alone) == 6
        for (inputs, targets), *parts in zip(alone, *dealt, strict=True):
            assert torch.equal(inputs["x"], torch.cat([x["x"] for x, _ in parts]))
            assert torch.equal(targets, torch.cat([y for _, y in parts]))


def test_a_training_goes_on_with_another_number_of_processes(decoded):
    alone = [inputs["x"] for inputs, _ in batches(decoded, mixup=0.8).stream(0)]
    for start, world in ((0, 2), (2, 3), (4, 1)):
        streams = [batches(decoded, share, mixup=0.8).stream(start) for share in shares(world)]
        for step in (start, start + 1):
            parts = [next(stream)[0]["x"] for stream in streams]
            assert torch.equal(torch.cat(parts), alone[step])


def test_texts_and_blocks_are_dealt_out_alike():
    lengths = torch.randint(1, 9, (14,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tokens = torch.arange(int(offsets[-1]), dtype=torch.int32)
    about = {"pad_id": 0}
    for split in (
        TextSplit(tokens, offsets, torch.arange(14), about),
        CorpusSplit(torch.arange(14 * 4, dtype=torch.int32).view(14, 4), about),
    ):
        for (inputs, targets), *parts in zip(
            batches(split).stream(0),
            *(batches(split, share).stream(0) for share in shares(2)),
            strict=True,
        ):
            rows = [row.tolist() for row in inputs["input_ids"]]
            dealt = [row.tolist() for part, _ in parts for row in part["input_ids"]]
            most = max(map(len, rows))  # a share's padding ends at its own longest text
            assert rows == [row + [0] * (most - len(row)) for row in dealt]
            assert torch.equal(targets, torch.cat([y for _, y in parts]))


def test_shares_of_a_measurement_are_all_samples_once(decoded):
    dealt = [list(iterate(decoded, 5, share=share)) for share in shares(2)]
    together = torch.cat([torch.cat([x for x, _ in both]) for both in zip(*dealt, strict=True)])
    assert torch.equal(together, decoded.read(torch.arange(14))[0])


# Workers


def test_workers_change_no_batch_and_draw_from_no_generator(decoded):
    state = torch.get_rng_state()
    alone, helped = (list(batches(decoded, mixup=0.8, workers=n).stream(1)) for n in (0, 2))
    assert torch.equal(state, torch.get_rng_state()) and len(alone) == 5
    for (inputs, targets), (same, same_targets) in zip(alone, helped, strict=True):
        assert torch.equal(inputs["x"], same["x"]) and torch.equal(targets, same_targets)
    for raw, same in zip(iterate(decoded, 5), iterate(decoded, 5, workers=2), strict=True):
        assert type(same) is tuple and all(map(torch.equal, raw, same))


def test_models_are_measured_with_readers_only_where_they_help(decoded, monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr("d2dmoe.data.batches._cpus", lambda: 6)
    assert readers(decoded, gpu) == 6 and readers(decoded, CPU) == 0 == readers(kept(), gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # that share the host
    assert readers(decoded, gpu) == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr("d2dmoe.data.batches._cpus", lambda: 96)
    assert readers(decoded, gpu) == MOST_READERS


@pytest.fixture
def workers():
    """A function that lists the processes which this one started since the test began."""
    before = {*psutil.Process().children()}
    return lambda: [x for x in psutil.Process().children() if x not in before]


@pytest.mark.workflow
def test_who_stops_a_worker_stops_the_training_which_reads_on(decoded, workers):
    """SLURM tells every process of a job to terminate; the training saves its state first."""
    told = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    try:
        stream = batches(decoded, epochs=30, workers=2).stream(0)
        next(stream)
        for worker in workers():
            subprocess.run(["kill", str(worker.pid)], check=True)  # from elsewhere
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told and len(list(stream)) == 59
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not workers()  # the training's own word ends them


def test_a_worker_that_is_killed_is_said_where_its_batch_is_missing(decoded, workers):
    """Not amid a training step."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as in a new process
    stream = batches(decoded, epochs=1000, workers=1).stream(0)
    next(stream)
    for worker in workers():
        os.kill(worker.pid, signal.SIGKILL)
        # Not waited for: the loader, which alone may, would never hear of its end.
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(DataError, match="process that reads samples ended.*fewer `workers`"):
        list(stream)


# Damage


def no_image(path: Path) -> None:
    path.write_bytes(b"no image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def removed(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "workers"),
    [*((damage, 0) for damage in (no_image, empty, cut_off, removed, a_folder)), (cut_off, 1)],
)
def test_an_image_that_cannot_be_read_is_named(root, damage, workers):
    split = open_split(root / "out", "train", root)
    index = int(load_file(root / "out/train.safetensors")["indices"][-1])
    path = root / f"animals/train/dog/{index - 8}.jpeg"
    whole, name = path.read_bytes(), rf"image {index} \(.*dog/{path.name}\)"
    damage(path)
    try:
        with pytest.raises(DataError, match=f"{name} cannot be read") as caught:
            list(batches(split, workers=workers, epochs=2).stream(0))
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)
    assert "Traceback" not in str(caught.value)


# Rates


def test_rates_are_of_batches_as_training_reads_them():
    with synthetic_tree(12, size=(40, 60)) as root:
        rows = list(image_rates("path:tree", root, [0, 1], batches=3, batch_size=4))
        assert [row["workers"] for row in rows] == [0, 1]
        assert all(row["rate"] > 0 and row["core"] > 0 for row in rows)
        broken = root / "tree/train/1/5.jpeg", root / "tree/val/2/2.jpeg"
        assert not list(damaged("path:tree", root))
        for path in broken:
            cut_off(path)
        found = list(damaged("path:tree", root))
    assert len(found) == 2 and all(str(p) in text for p, text in zip(broken, found, strict=True))
    assert token_rates(blocks=20, length=8, batches=2, batch_size=5)["rate"] > 0
