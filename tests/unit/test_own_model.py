"""Laws of tasks of one's own data and weights: what the weights say need not be written."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from safetensors.torch import save_file
from test_config import put

from d2dmoe.config.data import TokenizerConfig
from d2dmoe.config.schema import schema_text
from d2dmoe.errors import CheckpointError, ConfigError, UserError
from d2dmoe.plan.claims import claim_options
from d2dmoe.plan.defaults import completed
from d2dmoe.plan.plan import Plan, load_plan

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "config.yaml", *ROOT.glob("configs/*.yaml"), ROOT / "tests/workflow/tiny.yaml"]

CONFIGS = {  # config.json as transformers writes it, and what it comes to
    "bert": (
        {"num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 4}
        | {"intermediate_size": 384, "max_position_embeddings": 64, "hidden_act": "gelu"},
        {"layers": 2, "d_model": 96, "heads": 4, "d_ff": 384, "positions": 64},
    ),
    "gpt2": (
        {"n_layer": 2, "n_embd": 96, "n_head": 4, "n_inner": None, "n_positions": 64}
        | {"activation_function": "gelu_new"},
        {"layers": 2, "d_model": 96, "heads": 4, "d_ff": 384, "positions": 64},
    ),
    "gemma": (
        {"num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 4, "head_dim": 24}
        | {"num_key_value_heads": 1, "intermediate_size": 512, "max_position_embeddings": 512},
        {"layers": 2, "d_model": 96, "heads": 4, "d_ff": 512, "positions": 512}
        | {"head_dim": 24, "key_value_heads": 1},
    ),
}


def save_checkpoint(folder: Path, architecture: str, tokens: Any = None) -> None:
    """A folder as `save_pretrained` writes it, as far as the plan reads it."""
    folder.mkdir()
    config = {"model_type": architecture} | CONFIGS[architecture][0]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    if tokens is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    blocks = {f"model.layers.{i}.mlp.weight": torch.zeros(1) for i in range(2)}
    save_file(blocks, folder / "model.safetensors")


def save_vit(path: Path, patch: int = 16, layers: int = 12, width: int = 768, side: int = 224):
    """A state dict with the names and shapes of torchvision's, as far as the plan reads it."""
    shapes = {"class_token": (1, 1, width), "conv_proj.weight": (width, 3, patch, patch)}
    shapes["encoder.pos_embedding"] = (1, (side // patch) ** 2 + 1, width)
    for i in range(layers):
        shapes[f"encoder.layers.encoder_layer_{i}.ln_1.bias"] = (width,)
    shapes["encoder.layers.encoder_layer_0.mlp.0.weight"] = (4 * width, 1)
    save_file({name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}, path)


def short(kind: str, weights: str) -> dict[str, Any]:
    """All that a task needs."""
    source = "path:images" if kind == "images" else "path:own"
    return {
        "seeds": [0],
        "tasks": {"mine": {"data": {"source": source}, "model": {"weights": weights}}},
    }


@pytest.fixture(params=["bert", "gpt2", "gemma", "vit"])
def own(request, root) -> dict[str, Any]:
    """The shortest configuration of each architecture."""
    (root / "own").mkdir()
    for name in ("train", "test"):
        (root / f"own/{name}.csv").write_text("text,label\na,b\n")
    if request.param == "vit":
        save_vit(root / "vit.safetensors")
        return short("images", "path:vit.safetensors")
    save_checkpoint(root / "weights", request.param)
    return short("texts", "path:weights")


def test_data_and_weights_are_enough(own, root):
    plan = load_plan(own, root)
    print(yaml.safe_dump(completed(own, root)))
