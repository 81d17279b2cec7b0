"""Every configuration that is shipped, as the workflow reads it."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config

from d2dmoe.plan.plan import Plan, load_plan

ROOT = Path(__file__).parents[2]

SHIPPED = {
    "config.yaml": ["config.yaml"],
    "gpu.yaml": ["configs/gpu.yaml"],
    "paper.yaml": ["configs/paper.yaml"],
    "reference.yaml": ["config.yaml", "configs/reference.yaml"],  # the second says what differs
    "tiny.yaml": ["tests/workflow/tiny.yaml"],
}
assert {path.name for path in ROOT.glob("configs/*.yaml")} < SHIPPED.keys()


def shipped(name: str) -> dict[str, Any]:
    """Its values; of seeds the last, from which the others differ in nothing but their number."""
    raw: dict[str, Any] = {}
    for path in SHIPPED[name]:
        update_config(raw, yaml.safe_load((ROOT / path).read_text()))
    for own in (raw, *raw["tasks"].values()):
        own |= {"seeds": own["seeds"][-1:]} if "seeds" in own else {}
    return raw


@cache
def shipped_plan(name: str) -> Plan:
    """Its plan, in a folder where all is that it reads from a path."""
    return load_plan(shipped(name), ROOT, Path(_folder().name))


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Files in the place of those of tools/fetch_gpu.py, as far as a plan reads them."""
    folder = tempfile.TemporaryDirectory()
    place = Path(folder.name) / "resources/downloads/gpu"
    (place / "minilm").mkdir(parents=True)
    (place / "newsgroups").mkdir()
    for name in ("english.jsonl", "newsgroups/train.jsonl", "newsgroups/test.jsonl"):
        (place / name).touch()
    bert = {"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384}
    bert |= {"num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512}
    (place / "minilm/config.json").write_text(json.dumps(bert | {"hidden_act": "gelu"}))
    (place / "minilm/tokenizer.json").touch()
    _write_shapes(place / "minilm/model.safetensors", {"embeddings.weight": [30522, 384]})
    vit = {"class_token": [1, 1, 384], "encoder.pos_embedding": [1, 50, 384]}
    vit["conv_proj.weight"] = [384, 3, 14, 14]
    _write_shapes(place / "dinov2-vit-s-14-98.safetensors", vit)
    return folder


def _write_shapes(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file's header alone."""
    header = json.dumps({name: {"shape": shape} for name, shape in shapes.items()}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
