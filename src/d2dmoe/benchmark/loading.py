"""How fast samples reach a training: images decoded, cropped and flipped, and blocks of tokens.

What a GPU eats is in docs/scale.md; this says how many processes feed it on a machine.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from d2dmoe.config.data import ImagesConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.data.image_sources import load_images
from d2dmoe.data.prepare import prepare
from d2dmoe.data.splits import CorpusSplit, Split, open_split
from d2dmoe.errors import DataError
from d2dmoe.io.tensors import load_tensors, save_tensors

IMAGENET = (375, 500)  # height and width in pixels that most of its images have
QUALITY = 92  # of the JPEGs: 130 kB each; ImageNet's have 110 on average
CLASSES = 4
TRAINED = {"flip": True, "random_resized_crop": True}
TREE = {"kind": "images", "image_size": 224, "mean": [0.5] * 3, "std": [0.5] * 3}


@contextmanager
def synthetic_tree(images: int, size: tuple[int, int] = IMAGENET) -> Iterator[Path]:
    """A folder that holds `tree`, an ImageFolder tree of so many training images with the spectrum
    of photographs, gone when left."""
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(0)
        for part, count in (("train", images), ("val", CLASSES)):
            for i in range(count):
                folder = Path(name, "tree", part, str(i % CLASSES))
                folder.mkdir(parents=True, exist_ok=True)
                picture(rng, *size).save(folder / f"{i}.jpeg", quality=QUALITY)
        yield Path(name)


def picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Random, with amplitudes that fall with the frequency as those of photographs do."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    amplitudes = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    phases = np.exp(2j * np.pi * rng.random((3, *amplitudes.shape)))
    light, red, blue = np.fft.irfft2(amplitudes * phases, s=(height, width))
    pixels = np.stack([light + 0.3 * red, light, light + 0.3 * blue], -1)
    pixels = 120 + 55 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def image_rates(
    source: str, root: Path, workers: Iterable[int], batches: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Images per second that reach a training on ImageNet.

    Args:
        source: of images, as in the configuration.
        root: where a relative `source` begins.
        workers: how many processes read, one row each; 0: this process.
        batches: timed in each row.
        batch_size: images of a batch.

    Returns:
        Rows what, workers, rate (samples per second) and core (per second of a CPU's time).

    Raises:
        DataError: the source, or an image, cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = ImagesConfig.model_validate(TREE | {"source": source, "in_memory": False})
        prepare(cfg, root, Path(folder))
        split = open_split(Path(folder), "train", root)
        size = min(batch_size, len(split))
        for count in workers:
            options = {"batch_size": size, "augment": TRAINED, "workers": count}
            yield {"what": "images", "workers": count} | _rates(split, options, batches)


def token_rates(blocks: int, length: int, batches: int, batch_size: int) -> dict[str, Any]:
    """Tokens per second that one process reads, in a random order, from a file that was written a
    moment ago: the disk's speed is not meant.

    Args:
        blocks: in the file.
        length: tokens of a block.
        batches: timed.
        batch_size: blocks of a batch.

    Returns:
        A row like those of `image_rates`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, generator = Path(folder, "train.safetensors"), torch.Generator().manual_seed(0)
        shape = (blocks, length + 1)
        tokens = torch.randint(50257, shape, dtype=torch.int32, generator=generator)
        save_tensors(path, {"tokens": tokens})
        del tokens
        split = CorpusSplit(load_tensors(path, "")[0]["tokens"], {})
        rates = _rates(split, {"batch_size": batch_size}, batches)
    return {"what": "tokens", "workers": 0} | {name: length * x for name, x in rates.items()}


def _rates(split: Split, options: dict[str, Any], batches: int) -> dict[str, float]:
    """Samples per second, and per CPU second, when all processes have begun to read."""
    cfg = TrainingConfig.model_validate({"epochs": 1e6, "lr": 1.0} | options)
    stream = TrainingBatches(split, cfg, 0, torch.device("cpu")).read(0)
    for _ in islice(stream, max(1, cfg.workers)):
        pass
    start, used = time.perf_counter(), _cpu_s()
    samples = sum(len(raw[0]) for raw in islice(stream, batches))
    return {
        "rate": samples / (time.perf_counter() - start),
        "core": samples / (_cpu_s() - used),
    }


def _cpu_s() -> float:
    """CPU time of this process and of those that it started."""
    others = [process.cpu_times() for process in psutil.Process().children()]
    return time.process_time() + sum(t.user + t.system for t in others)


def damaged(source: str, root: Path) -> Iterator[str]:
    """What is wrong with each image of a source that cannot be read, all of them.

    Raises:
        DataError: the source cannot be read at all.
    """
    for part in ("train", "test"):
        images = load_images(source, part, root)
        for index in range(len(images.labels)):
            try:
                images.whole(index)
            except DataError as error:
                yield str(error)
