"""Make resources/fashion-mnist/ from the four files in which Fashion-MNIST is published.

    python tools/vendor_fashion_mnist.py train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz \\
        t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz

Kept for provenance: it shows how the vendored parquet files came about. Nothing else runs it.
"""

import argparse
import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

FOLDER = Path(__file__).parents[1] / "resources" / "fashion-mnist"
PER_CLASS = 2000
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]  # fmt: skip
# SHA-256 of the uncompressed IDX files: mirrors differ in their gzip headers only.
RAW = {
    "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read_idx(path: Path, name: str, header: int) -> np.ndarray:
    """The bytes after the IDX header (16 bytes for images, 8 for labels)."""
    raw = gzip.decompress(path.read_bytes())
    found = hashlib.sha256(raw).hexdigest()
    if found != RAW[name]:
        raise SystemExit(f"{path}: expected {name} with SHA-256 {RAW[name]}, found {found}")
    return np.frombuffer(raw, np.uint8, offset=header)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` images of each class, in file order."""
    per_class = [np.flatnonzero(labels == c)[:count] for c in range(len(CLASSES))]
    return np.sort(np.concatenate(per_class))


def png(pixels: np.ndarray) -> bytes:
    """An optimised greyscale PNG of a [28, 28] image."""
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """One row per image, in the form in which the Hugging Face hub keeps image datasets."""
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    rows = {
        "image": [{"bytes": png(image), "path": None} for image in images],
        "label": labels.tolist(),
    }
    Dataset.from_dict(rows, features=features).to_parquet(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in RAW:
        parser.add_argument(name, type=Path, metavar=f"{name}.gz")
    files = vars(parser.parse_args())
    sums = []
    for source, target in [("train", "train.parquet"), ("t10k", "test.parquet")]:
        images = read_idx(files[f"{source}-images"], f"{source}-images", 16).reshape(-1, 28, 28)
        labels = read_idx(files[f"{source}-labels"], f"{source}-labels", 8)
        chosen = np.arange(len(labels))
        if source == "train":
            chosen = first_of_each_class(labels, PER_CLASS)
        write_parquet(FOLDER / target, images[chosen], labels[chosen])
        digest = hashlib.sha256((FOLDER / target).read_bytes()).hexdigest()
        sums.append(f"{digest}  {target}\n")
    (FOLDER / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
