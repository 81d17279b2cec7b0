"""Laws of what goes to a GPU machine without a network: weights and texts are the published ones, a
bundle holds what its tasks read, and its parts go on where the last one stopped."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention
from torchvision.models.vision_transformer import VisionTransformer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import bundle  # noqa: E402
import fetch_gpu  # noqa: E402

D, HEADS, D_FF, GRID = 12, 2, 20, 3


def exported(generator: torch.Generator, grid: int) -> dict[str, torch.Tensor]:
    """A small DINOv2 by the names of its export, and maps by those that they get."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    found = {
        "onnx::Reshape_998": random(1, grid**2, D),
        "onnx::Concat_999": random(1, 1, D),
        "backbone.embeddings.cls_token": random(1, 1, D),
        "backbone.embeddings.patch_embeddings.projection.weight": random(D, 3, 14, 14) / 20,
        "backbone.embeddings.patch_embeddings.projection.bias": random(D),
        "backbone.layernorm.weight": random(D),
        "backbone.layernorm.bias": random(D),
    }
    maps = {f"attention.attention.{name}": (D, D) for name in ("key", "value", "query")}
    maps |= {"attention.output.dense": (D, D), "mlp.fc1": (D, D_FF), "mlp.fc2": (D_FF, D)}
    for layer in range(fetch_gpu.LAYERS):
        block = f"backbone.encoder.layer.{layer}"
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            found[f"{block}.{name}"] = random(D)
        for i in (1, 2):
            found[f"{block}.layer_scale{i}.lambda1"] = random(D)
        for name, (inputs, outputs) in maps.items():
            found[f"{block}.{name}.weight"] = random(inputs, outputs) / inputs**0.5
            found[f"{block}.{name}.bias"] = random(outputs)
    return found


def dinov2(found: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What the exported model makes of images: all tokens after the last norm."""
    own = {name.removeprefix("backbone."): x for name, x in found.items()}
    weight, bias = (own[f"embeddings.patch_embeddings.projection.{n}"] for n in ("weight", "bias"))
    patches = torch.conv2d(images, weight, bias, stride=14).flatten(2).transpose(1, 2)
    first = own["embeddings.cls_token"].expand(len(images), -1, -1)
    positions = torch.cat([found["onnx::Concat_999"], found["onnx::Reshape_998"]], 1)
    x = torch.cat([first, patches], 1) + positions
    for layer in range(fetch_gpu.LAYERS):
        b = {k.removeprefix(f"encoder.layer.{layer}."): v for k, v in own.items()}

        def mapped(name: str, z: torch.Tensor, b=b) -> torch.Tensor:
            return z @ b[f"{name}.weight"] + b[f"{name}.bias"]

        z = layer_norm(x, (D,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        heads = [
            mapped(f"attention.attention.{name}", z).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        ]
        z = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + b["layer_scale1.lambda1"] * mapped("attention.output.dense", z)
        z = layer_norm(x, (D,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        x = x + b["layer_scale2.lambda1"] * mapped("mlp.fc2", gelu(mapped("mlp.fc1", z)))
    return layer_norm(x, (D,), own["layernorm.weight"], own["layernorm.bias"], 1e-6)


def test_dinov2_by_torchvisions_names_is_the_same_model():
    generator = torch.Generator().manual_seed(0)
    found = exported(generator, GRID)
    sizes = {"num_layers": fetch_gpu.LAYERS, "num_heads": HEADS, "hidden_dim": D, "mlp_dim": D_FF}
    model = VisionTransformer(image_size=14 * GRID, patch_size=14, num_classes=4, **sizes).eval()
    missing, unknown = model.load_state_dict(fetch_gpu.vit_of_dinov2(found, GRID), strict=False)
    assert set(missing) == {"heads.head.weight", "heads.head.bias"} and not unknown
    images = torch.randn(2, 3, 14 * GRID, 14 * GRID, generator=generator)
    with torch.no_grad():
        first = model.class_token.expand(2, -1, -1)
        given = model.encoder(torch.cat([first, model._process_input(images)], 1))
    assert torch.allclose(given, dinov2(found, images), atol=1e-4)


def test_a_map_gets_the_name_of_the_bias_that_is_added_to_its_product():
    """The export numbers them in the order of their use, in which the query comes last."""

    def node(kind: str, inputs: list[str], output: str) -> SimpleNamespace:
        return SimpleNamespace(op_type=kind, input=inputs, output=[output])

    nodes = [
        node("MatMul", ["x", "onnx::MatMul_7"], "a"),
        node("MatMul", ["x", "onnx::MatMul_4"], "b"),
        node("Add", ["layer.0.key.bias", "a"], "key"),
        node("Add", ["layer.0.query.bias", "b"], "query"),
        node("MatMul", ["key", "query"], "scores"),  # of no map
        node("Add", ["x", "y"], "residual"),
    ]
    found = {"onnx::MatMul_7": "layer.0.key.weight", "onnx::MatMul_4": "layer.0.query.weight"}
    assert fetch_gpu.map_names(nodes) == found


def test_positions_of_another_number_of_patches_are_between_those_of_the_export():
    found = exported(torch.Generator().manual_seed(0), 5)
    found["onnx::Reshape_998"] = torch.arange(5.0).repeat(5)[None, :, None].expand(1, 25, D)
    positions = fetch_gpu.vit_of_dinov2(found, GRID)["encoder.pos_embedding"]
    assert torch.equal(positions[:, :1], found["onnx::Concat_999"])
    rows = positions[0, 1:, 0].view(GRID, GRID)
    assert torch.allclose(rows[:, 1], torch.tensor(2.0)) and (rows.diff(dim=1) > 1).all()


def test_newsgroups_lose_oranges_header_and_empty_texts():
    table = (
        "Category\tText\nd\tstring\nclass\t\nalt.atheism\tone two\nsci.med\t  \nsci.med\t three \n"
    )
    assert list(fetch_gpu.newsgroups(table)) == [
        {"label": "alt.atheism", "text": "one two"},
        {"label": "sci.med", "text": "three"},
    ]


# Bundles

CONFIG = {
    "seeds": [0],
    "benchmarks": {"masks": {"task": "a"}},
    "tasks": {
        "a": {"data": {"source": "vendored:fashion-mnist"}, "model": {"weights": "scratch"}},
        "b": {
            "data": {"source": "path:resources/state-of-the-union/train.parquet"},
            "model": {"weights": "hub:some/thing"},
        },
    },
}


def test_a_bundle_has_the_chosen_tasks_and_what_they_read():
    assert bundle.trimmed(CONFIG, None)["tasks"] == CONFIG["tasks"]
    config = bundle.trimmed(CONFIG, ["b"])
    assert config == {"seeds": [0], "tasks": {"b": CONFIG["tasks"]["b"]}}  # no masks of a
    assert bundle.data_of(config) == [Path("resources/state-of-the-union/train.parquet")]
    names = {path.name for path in bundle.data_of(CONFIG)}
    assert {"train.parquet", "test.parquet", "SHA256SUMS"} <= names
    with pytest.raises(SystemExit, match="no task c; the configuration has a, b"):
        bundle.trimmed(CONFIG, ["c"])


def test_everything_that_the_workflow_includes_is_in_a_bundle():
    files = {str(path) for path in bundle.tracked(bundle.NEEDED)}
    assert {"Snakefile", "rules/common.smk", "scripts/train.py", "src/d2dmoe/moe.py"} <= files
    assert {"profiles/gpu/profile.yaml", "report/workflow.rst"} <= files
    assert not any(name.startswith(("tests", "docs")) for name in files)


FAKE = """#!/usr/bin/env bash
# In the place of Python: a workflow of three steps, half a second each, that keeps what is done.
trap 'exit 130' INT
mkdir -p results .snakemake/metadata .snakemake/incomplete
for step in 1 2 3; do
    [ -e results/$step ] || { sleep 0.5; echo "$PYTHONPATH $*" > results/$step; }
done
"""


@pytest.mark.workflow
def test_parts_of_a_run_go_on_where_the_last_one_stopped(tmp_path):
    made = tmp_path / "bundle"
    (made / "tree").mkdir(parents=True)
    (made / "run").write_bytes(bundle.RUN.read_bytes())
    (tmp_path / "python3").write_text(FAKE)
    (tmp_path / "python3").chmod(0o755)
    where = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def part(seconds: str) -> str:
        command = ["bash", str(made / "run"), seconds, "all", "--cores", "1"]
        return subprocess.run(command, env=where, capture_output=True, text=True).stdout

    assert "not done yet" in part("0.75")
    state = {path.name: path.read_bytes() for path in (made / "state").iterdir()}
    for path in sorted((made / "tree").rglob("*"), reverse=True):  # another machine
        path.unlink() if path.is_file() else path.rmdir()
    assert state.keys() == {"part.aa"}
    first = part("0.2")
    assert "not done yet" in first and (made / "tree/results/1").is_file()
    assert part("10").splitlines() == ["done"]
    assert "-m snakemake all --cores 1" in (made / "tree/results/3").read_text()
    assert str(made / "tree/src") in (made / "tree/results/3").read_text()


@pytest.mark.workflow
def test_a_bundles_configuration_is_read_as_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bundle", str(tmp_path / "made")])
    bundle.main()
    config = yaml.safe_load((tmp_path / "made/tree/config.yaml").read_text())
    whole = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert config["tasks"] == whole["tasks"] and (tmp_path / "made/run").stat().st_mode & 0o100
    assert (tmp_path / "made/tree/resources/fashion-mnist/train.parquet").is_file()
    with pytest.raises(SystemExit, match="is there already"):
        bundle.main()
