"""Laws of the image data: fair and fixed splits, exact order, and clear errors for broken files."""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from d2dmoe.config.augment import AugmentConfig
from d2dmoe.config.data import ImagesConfig, check_source
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.augment import (
    crop_box,
    draw_changes,
    flip_and_shift,
    mix,
    normalise,
    resized_crop,
)
from d2dmoe.data.batches import TrainingBatches, epoch_order, iterate
from d2dmoe.data.image_sources import load_images
from d2dmoe.data.images import choose_validation, first_balanced
from d2dmoe.data.prepare import prepare
from d2dmoe.data.share import WHOLE
from d2dmoe.data.splits import open_split
from d2dmoe.data.vendored import vendored_file
from d2dmoe.errors import ConfigError, DataError
from d2dmoe.io.files import sha256

ROOT = Path(__file__).parents[2]
FASHION = ROOT / "resources" / "fashion-mnist"
SPLITS = ("train", "validation", "test")


def config(source: str = "vendored:fashion-mnist", **changes) -> ImagesConfig:
    values = {"image_size": 28, "validation": 100, "mean": [0.5] * 3, "std": [0.25] * 3}
    return ImagesConfig.model_validate({"kind": "images", "source": source, **values, **changes})


def random_image(rng: np.random.Generator, height: int, width: int, grey: bool) -> Image.Image:
    shape = (height, width) if grey else (height, width, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> Path:
    """A small prepared set with its pixels in memory."""
    folder = tmp_path_factory.mktemp("fashion")
    prepare(config(max_train=500, max_test=200), ROOT, folder)
    return folder


@pytest.fixture
def tree(tmp_path) -> Path:
    """An ImageFolder tree of ImageNet's form: JPEGs of many sizes, one grey, no labelled test/."""
    rng = np.random.default_rng(0)
    for part, count in [("train", 6), ("val", 3)]:
        for name in ("cat", "dog"):
            folder = tmp_path / "animals" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(20, 60, 2)
                random_image(rng, height, width, grey=i == 0).save(folder / f"{i}.jpeg")
    (tmp_path / "animals" / "test").mkdir()
    return tmp_path


# Configuration


@pytest.mark.parametrize(
    "source",
    ["vendored:fashion-mnist", "torchvision:CIFAR10", "hub:a/b", "hub:a/b@v1", "path:/some/where"],
)
def test_known_forms_are_accepted(source):
    assert config(source).source == source


@pytest.mark.parametrize(
    "source", ["fashion-mnist", "http:x", "vendored:", "vendored:../x", "torchvision:a b", "hub:@v"]
)
def test_unknown_forms_are_refused_with_the_allowed_ones(source):
    with pytest.raises(ValidationError, match="vendored:NAME.*torchvision:CLASS.*hub:NAME.*path:"):
        config(source)


@pytest.mark.parametrize(
    "change", [{"image_size": 0}, {"std": [0.0, 1.0, 1.0]}, {"mean": [0.5]}, {"max_train": "3.0"}]
)
def test_impossible_values_are_refused(change):
    with pytest.raises(ValidationError):
        config(**change)


def test_every_key_has_a_description():
    for model in (ImagesConfig, AugmentConfig):
        assert all("description" in p for p in model.model_json_schema()["properties"].values())


def test_check_source_accepts_what_is_there(tree):
    for source in ("vendored:fashion-mnist", "torchvision:CIFAR10", "hub:a/b"):
        check_source(config(source), ROOT)
    check_source(config("path:animals"), tree)


def test_check_source_names_cause_and_remedy(tree):
    with pytest.raises(DataError, match="vendored:nothing.*fashion-mnist.*git checkout"):
        check_source(config("vendored:nothing"), ROOT)
    with pytest.raises(DataError, match="no such folder"):
        check_source(config("path:nothing"), tree)
    with pytest.raises(DataError, match="no folder"):
        check_source(config("hub:./nothing"), tree)
    shutil.rmtree(tree / "animals" / "val")
    with pytest.raises(DataError, match="needs train/ and test/ or val/.*found: test, train"):
        check_source(config("path:animals"), tree)


def test_nothing_slow_is_imported_with_a_module():
    def imported(path: Path) -> set[str]:
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
        return {name.partition(".")[0] for name in names}

    package = ROOT / "src" / "d2dmoe"
    slow = {"datasets", "huggingface_hub", "pyarrow", "tokenizers", "torchvision", "transformers"}
    for path in (package / "data").glob("*.py"):
        assert not imported(path) & slow, path.name
    for path in (package / "config").glob("*.py"):
        assert not imported(path) & {*slow, "numpy", "torch"}, path.name


# The vendored set


def test_vendored_sizes_and_checksums():
    for part, each in [("train", 2000), ("test", 1000)]:
        images = load_images("vendored:fashion-mnist", part, ROOT)
        assert images.labels.bincount().tolist() == [each] * 10
        assert images.classes[0] == "T-shirt/top" and images.classes[9] == "Ankle boot"
        assert images.pixels(0, 28).shape == (1, 28, 28)
        assert sha256(FASHION / f"{part}.parquet") in (FASHION / "README.md").read_text()
    assert sum(p.stat().st_size for p in FASHION.iterdir()) < 16e6


def test_vendored_first_test_images_are_those_published():
    images = load_images("vendored:fashion-mnist", "test", ROOT)
    assert images.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_missing_and_truncated_vendored_files_are_named(tmp_path):
    folder = tmp_path / "resources" / "fashion-mnist"
    shutil.copytree(FASHION, folder)
    whole = (folder / "test.parquet").read_bytes()
    (folder / "test.parquet").write_bytes(whole[:-100])
    with pytest.raises(DataError, match="test.parquet is damaged: expected.*found.*git checkout"):
        prepare(config(), tmp_path, tmp_path / "out")
    (folder / "test.parquet").unlink()
    with pytest.raises(DataError, match="test.parquet is missing.*git checkout"):
        vendored_file("fashion-mnist", "test.parquet", tmp_path)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match="SHA256SUMS is missing"):
        vendored_file("fashion-mnist", "train.parquet", tmp_path)


# Splits


def test_splits_are_disjoint_balanced_and_complete(tmp_path):
    cfg = config(in_memory=False, validation=2000)
    prepare(cfg, ROOT, tmp_path)
    train, held_out, test = (load_file(tmp_path / f"{s}.safetensors") for s in SPLITS)
    together = torch.cat([train["indices"], held_out["indices"]])
    assert torch.equal(together.sort().values, torch.arange(20000))
    assert train["labels"].bincount().tolist() == [1800] * 10
    assert held_out["labels"].bincount().tolist() == [200] * 10
    assert torch.equal(test["indices"], torch.arange(10000))


def test_the_same_config_gives_the_same_bytes(fashion, tmp_path):
    prepare(config(max_train=500, max_test=200), ROOT, tmp_path)
    for file in [f"{s}.safetensors" for s in SPLITS] + ["dataset.json"]:
        assert (tmp_path / file).read_bytes() == (fashion / file).read_bytes()


def test_another_split_seed_holds_out_others():
    labels = torch.arange(40) % 4
    a, b = (choose_validation(labels, 8, 4, seed) for seed in (0, 1))
    assert not torch.equal(a, b)
    assert labels[a].bincount().tolist() == labels[b].bincount().tolist() == [2] * 4


@pytest.mark.parametrize("count", [6, 40, 44])
def test_impossible_validation_sizes_are_refused(count):
    with pytest.raises(ConfigError, match="multiples of 4 up to 36"):
        choose_validation(torch.arange(40) % 4, count, 4, seed=0)


def test_first_balanced_takes_the_first_of_each_class():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert first_balanced(labels, 4).tolist() == [0, 1, 3, 5]
    assert first_balanced(labels, 9).tolist() == [0, 1, 2, 3, 4, 5]
    assert first_balanced(labels, None).tolist() == [0, 1, 2, 3, 4, 5]


def test_trials_keep_the_same_validation_images(fashion, tmp_path):
    prepare(config(max_train=50, max_test=20), ROOT, tmp_path)
    assert sha256(tmp_path / "validation.safetensors") == sha256(fashion / "validation.safetensors")
    assert len(open_split(tmp_path, "train")) == 50


def test_description_says_what_was_prepared(fashion):
    about = json.loads((fashion / "dataset.json").read_text())
    assert about["sizes"] == {"train": 500, "validation": 100, "test": 200}
    assert about["kind"] == "images" and about["source"] == "vendored:fashion-mnist"
    assert about["sha256"].keys() == about["sizes"].keys() and len(about["classes"]) == 10


def test_open_split_reads_grey_images_in_three_channels(fashion):
    split = open_split(fashion, "test")
    images = split.pixels(torch.tensor([3, 0]))
    assert images.shape == (2, 3, 28, 28) and images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])
    published = load_images("vendored:fashion-mnist", "test", ROOT)
    assert torch.equal(images[1, :1], published.pixels(0, 28))
    assert len(split) == len(split.labels) == 200 and split.mean == [0.5] * 3


def test_truncated_altered_and_missing_prepared_files_are_named(fashion, tmp_path):
    shutil.copytree(fashion, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train.safetensors"
    whole = path.read_bytes()
    for broken in (whole[:-10], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="train.safetensors is damaged.*Rerun rule `dataset`"):
            open_split(tmp_path, "train")
    path.unlink()
    with pytest.raises(DataError, match="train.safetensors is missing.*Rerun rule `dataset`"):
        open_split(tmp_path, "train")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="dataset.json cannot be read.*Rerun rule `dataset`"):
        open_split(tmp_path, "test")


# Sources


def test_image_folder_gives_the_same_images_in_memory_and_decoded(tree):
    for in_memory in (True, False):
        cfg = config("path:animals", image_size=32, validation=4, in_memory=in_memory)
        prepare(cfg, tree, tree / str(in_memory))
    for name, size in zip(SPLITS, (8, 4, 6), strict=True):
        kept, decoded = (open_split(tree / str(b), name, root=tree) for b in (True, False))
        everything = torch.arange(size)
        assert torch.equal(kept.pixels(everything), decoded.pixels(everything))
        assert torch.equal(kept.labels, decoded.labels)
        assert kept.classes == ["cat", "dog"] and len(kept) == size


def test_a_changed_source_is_noticed(tree):
    prepare(config("path:animals", validation=4, in_memory=False), tree, tree / "out")
    (tree / "animals" / "train" / "cat" / "0.jpeg").unlink()
    with pytest.raises(DataError, match="has changed since it was split"):
        open_split(tree / "out", "train", root=tree)


def test_a_broken_image_is_named(tree):
    (tree / "animals" / "val" / "dog" / "2.jpeg").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"path:animals: image 5 \(.*val/dog/2.jpeg\) cannot be read"
    ):
        prepare(config("path:animals", validation=4), tree, tree / "out")


def test_differing_classes_are_refused(tree):
    (tree / "animals" / "val" / "dog").rename(tree / "animals" / "val" / "wolf")
    with pytest.raises(DataError, match="different classes"):
        prepare(config("path:animals", validation=4), tree, tree / "out")


def test_torchvision_reads_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "resources" / "downloads" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {}
    for prefix, count in [("train", 40), ("t10k", 20)]:
        pixels[prefix] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels[prefix].tobytes())
        header = np.array([0x801, count], ">i4").tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    prepare(config("torchvision:MNIST", validation=20), tmp_path, tmp_path / "out")
    test = open_split(tmp_path / "out", "test")
    assert np.array_equal(test.pixels(torch.arange(20))[:, 1], pixels["t10k"])
    assert test.labels.tolist() == list(range(10)) * 2
    with pytest.raises(DataError, match="no class mnist"):
        load_images("torchvision:mnist", "train", tmp_path)


class SplitNamed:
    """A torchvision class of the other kind: split="train", no test split, no download."""

    classes = [("tench", "Tinca tinca"), "goldfish"]

    def __init__(self, root, split="train"):
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value '{split}'")
        self.split, self.targets = split, [0, 1]

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8), "black" if self.split == "val" else "white"), index


def test_torchvision_classes_with_named_splits(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.ImageNet", SplitNamed)
    train, test = (load_images("torchvision:ImageNet", p, tmp_path) for p in ("train", "test"))
    assert train.pixels(0, 8).float().mean() == 255 and test.pixels(0, 8).float().mean() == 0
    assert test.classes == ["tench, Tinca tinca", "goldfish"]


def save_parquet(folder: Path, split: str, labels: list[int], seed: int) -> list[Image.Image]:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(seed)
    images = [random_image(rng, 10, 12, grey=False) for _ in labels]
    features = Features({"img": ImageFeature(), "fine_label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"img": images, "fine_label": labels}, features=features)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return images


def test_hub_reads_a_dataset_repository_and_passes_over_withheld_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "repo" / "data"
    data.mkdir(parents=True)
    train = save_parquet(data, "train", [0, 1] * 4, seed=0)
    validation = save_parquet(data, "validation", [1, 0], seed=1)
    save_parquet(data, "test", [-1, -1], seed=2)  # as ImageNet's are on the hub
    cfg = config("hub:repo", image_size=10, validation=2)
    prepare(cfg, tmp_path, tmp_path / "out")
    test = open_split(tmp_path / "out", "test")
    assert test.labels.tolist() == [1, 0] and test.classes == ["a", "b"]
    centre = np.asarray(validation[0])[:, 1:11]  # 10 x 12, one column off on each side
    assert np.array_equal(test.pixels(torch.tensor([0]))[0].permute(1, 2, 0), centre)
    assert len(load_images("hub:repo", "train", tmp_path).labels) == len(train)


def test_a_failing_download_names_source_and_remedy(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match="hub:a/b: .*no route to host.*Check the name, the network"):
        load_images("hub:a/b", "train", tmp_path)


# Order


def training(split, **options) -> TrainingBatches:
    cfg = TrainingConfig(**{"epochs": 2, "lr": 0.1, "batch_size": 64, **options})
    return TrainingBatches(split, cfg, 3, torch.device("cpu"))


def test_the_first_batch_is_the_same_as_after_skipping(fashion):
    whole = list(training(open_split(fashion, "train")).stream(0))
    rest = list(training(open_split(fashion, "train")).stream(5))
    assert len(whole) == 14 and len(rest) == 9 and {len(y) for _, y in whole} == {64}
    for (images, labels), (same_images, same_labels) in zip(whole[5:], rest, strict=True):
        assert torch.equal(images["x"], same_images["x"]) and torch.equal(labels, same_labels)
    assert not list(training(open_split(fashion, "train")).stream(14))


def test_skipped_batches_are_not_read(tree):
    prepare(config("path:animals", validation=4, in_memory=False), tree, tree / "out")
    split = open_split(tree / "out", "train", root=tree)
    kept = epoch_order(8, 3, 0)[4:]  # of the second batch
    files = sorted((tree / "animals" / "train").rglob("*.jpeg"))
    of_split = load_file(tree / "out" / "train.safetensors")["indices"]
    for i, path in enumerate(files):
        if i not in of_split[kept]:
            path.unlink()
    assert len(list(training(split, epochs=1, batch_size=4).stream(1))) == 1


def test_epochs_differ_seeds_repeat_and_each_is_a_permutation():
    assert torch.equal(epoch_order(500, 0, 1), epoch_order(500, 0, 1))
    orders = [epoch_order(500, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(orders[a], orders[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(500))


def test_a_model_is_measured_in_the_stored_order_on_every_sample(fashion):
    split = open_split(fashion, "test")
    batches = list(iterate(split, 150))
    assert [len(labels) for _, labels in batches] == [150, 50]
    stored = split.pixels(torch.arange(200))
    assert torch.equal(torch.cat([images for images, _ in batches]), stored)


# Augmentation


def changed(images: torch.Tensor, seed: int = 0, **options) -> torch.Tensor:
    """Images with random changes."""
    cfg = AugmentConfig(**options)
    drawn = draw_changes(cfg, len(images), torch.Generator().manual_seed(seed))
    if "crop" in drawn:
        both = zip(images, drawn["crop"], strict=True)
        images = torch.stack([resized_crop(x, d, x.shape[1:]) for x, d in both])
    return flip_and_shift(images, drawn, cfg.crop_padding)


@pytest.mark.parametrize(
    "cfg", [{"flip": True}, {"crop_padding": 3}, {"random_resized_crop": True}, {}]
)
def test_changes_are_deterministic_and_keep_the_shape(cfg):
    images = torch.randint(0, 256, (32, 3, 20, 24), dtype=torch.uint8)
    before, state = images.clone(), torch.get_rng_state()
    a, b, c = (changed(images, seed, **cfg) for seed in (0, 0, 1))
    assert a.shape == images.shape and a.dtype == torch.uint8
    assert torch.equal(a, b) and torch.equal(images, before)
    assert torch.equal(a, c) == (not cfg)
    assert torch.equal(state, torch.get_rng_state())


def test_flip_mirrors_about_half_of_the_images():
    images = torch.arange(8, dtype=torch.uint8).expand(1000, 3, 2, 8)
    flipped = changed(images, flip=True)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert 400 < mirrored.sum() < 600


def test_crop_shifts_each_image_by_at_most_the_padding():
    images = torch.zeros(500, 3, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 1
    shifted = changed(images, crop_padding=2)
    _, channel, row, column = shifted.nonzero().T
    assert len(row) == 500 * 3 and channel[:3].tolist() == [0, 1, 2]
    assert set(row.tolist()) == set(column.tolist()) == {2, 3, 4, 5, 6}


def test_boxes_of_crops_have_the_published_areas_and_ratios():
    drawn = draw_changes(
        AugmentConfig(random_resized_crop=True), 2000, torch.Generator().manual_seed(0)
    )
    boxes = torch.tensor([crop_box(numbers, 375, 500) for numbers in drawn["crop"]])
    top, left, rows, columns = boxes.T
    assert (top + rows).max() <= 375 and (left + columns).max() <= 500 and boxes.min() >= 0
    area, ratio = rows * columns / (375 * 500), columns / rows
    whole = (rows < 375) & (columns < 500)  # not trimmed
    assert 0.07 < area.min() < 0.09 and area.max() > 0.9
    assert 0.74 < ratio[whole].min() < 0.77 and 1.3 < ratio[whole].max() < 1.35
    assert abs(area[whole].mean() - 0.45) < 0.1


def test_crops_are_of_the_image_as_it_was_published(tree):
    """Not of the square that is kept for evaluation: small boxes would be blurred."""
    from torchvision.transforms.v2.functional import resized_crop as published_crop

    prepare(config("path:animals", validation=4, in_memory=False), tree, tree / "out")
    split = open_split(tree / "out", "train", root=tree)
    cfg = TrainingConfig(epochs=1, lr=0.1, augment=AugmentConfig(random_resized_crop=True))
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    pixels, labels = split.read_changed(torch.arange(8), WHOLE, cfg, seeds[0])
    drawn = draw_changes(cfg.augment, 8, seeds[1])["crop"]
    source = load_images("path:animals", "train", tree)
    of_split = load_file(tree / "out" / "train.safetensors")["indices"].tolist()
    for i, image in enumerate(map(source.whole, of_split)):
        expected = published_crop(image, *crop_box(drawn[i], *image.shape[1:]), [28, 28])
        assert torch.equal(pixels[i], expected.expand(3, -1, -1))
    assert torch.equal(labels, split.labels)


def test_batches_for_evaluation_are_normalised_and_those_for_training_mixed(fashion):
    split, cpu = open_split(fashion, "test"), torch.device("cpu")
    raw = split.read(torch.arange(12))
    inputs, labels = split.batch(raw, cpu)
    assert torch.equal(inputs["x"], normalise(raw[0], split.mean, split.std))
    assert torch.equal(labels, split.labels[:12]) and split.lengths is None
    (a, weights), (b, _) = (
        next(training(split, mixup=0.8, augment={"crop_padding": 2}).stream(0)) for _ in range(2)
    )
    assert torch.equal(a["x"], b["x"]) and a["x"].shape == (64, 3, 28, 28)
    assert weights.shape == (64, 10) and torch.allclose(weights.sum(1), torch.ones(64))
    assert ((weights > 0) & (weights < 1)).any()


def test_normalise():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    normal = normalise(images, [0.5, 0.5, 0.0], [0.5, 0.25, 1.0])
    assert normal.dtype == torch.float32
    assert normal[:, :, 0, 0].tolist() == [[-1, -2, 0], [1, 2, 1]]


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mix_is_deterministic_and_targets_sum_to_one(alphas):
    images, targets = torch.rand(9, 3, 16, 16), torch.eye(9)
    state = torch.get_rng_state()
    a, b = (mix(images, targets, *alphas, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert torch.allclose(a[1].sum(1), torch.ones(8)) and a[0].shape == images[1:].shape
    assert torch.equal(state, torch.get_rng_state())


def test_mix_weighs_targets_as_it_weighs_pixels():
    constant = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)  # image i holds i
    generator = torch.Generator().manual_seed(0)
    for alphas in [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] * 5:
        mixed, weights = mix(constant, torch.eye(4), *alphas, generator)
        assert torch.allclose(mixed.mean((1, 2, 3)), weights @ torch.arange(4.0), atol=1e-5)


def test_images_that_are_not_mixed_keep_their_classes(fashion):
    split = open_split(fashion, "train")
    images, targets = next(training(split).stream(0))
    first = epoch_order(len(split), 3, 0)[:64]
    assert torch.equal(targets.argmax(1), split.labels[first]) and {*targets.unique().tolist()} == {
        0,
        1,
    }
    assert torch.equal(images["x"], split.batch(split.read(first), torch.device("cpu"))[0]["x"])
