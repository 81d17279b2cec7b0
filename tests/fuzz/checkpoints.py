"""Damaged models and training states, loaded as the stages load them."""

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mutations import damaged, json_of, mutated, places
from torch import Tensor, nn

from d2dmoe.checkpoint import load_dense_model, load_model, save_model
from d2dmoe.compression.quantize import quantize_weights
from d2dmoe.config.model import BertConfig, GPT2Config, ViTConfig
from d2dmoe.config.training import TrainingConfig
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.io.tensors import load_tensors, save_tensors
from d2dmoe.jobs.state import TrainingState
from d2dmoe.models.build import create_model
from d2dmoe.spec import ModelSpec
from d2dmoe.surgery import find
from d2dmoe.training import make_optimizer

SIZES: dict[str, Any] = {"layers": 2, "d_model": 8, "heads": 2, "d_ff": 16}
CONFIGS = (
    ViTConfig(architecture="vit", patch_size=4, **SIZES),
    BertConfig(architecture="bert", positions=8, **SIZES),
    GPT2Config(architecture="gpt2", positions=8, **SIZES),
)
ABOUT = {"image_size": 8, "classes": ["a", "b"], "length": 8, "vocab_size": 20}
ABOUT |= {"pad_id": 0, "end_of_text_id": 0}
INT8 = {"weights": "int8"}
LARGEST = 256  # of a number in a header: a model of any size could be asked for, and be made


def _save_models(folder: Path) -> list[Path]:
    """A dense model of each architecture, with experts, and with routers, and one in int8."""
    paths = []
    for cfg in CONFIGS:
        options, model = create_model(cfg, ABOUT)
        spec = ModelSpec(architecture=cfg.architecture, options=options, data=ABOUT)
        neurons = [assign_neurons(f.activated.weight, 4, "random", 0) for f in _ffns(model)]
        stages: list[tuple[str, Callable[[], object], dict]] = [
            ("dense", lambda: None, {}),
            ("clustering", lambda m=model, n=neurons: to_moe(m, n), {"num_experts": {"ffn": 4}}),
            ("router", lambda m=model: add_routers(m, "regression", 3), _router()),
            ("quantize", lambda m=model, c=cfg: quantize_weights(c.architecture, m), INT8),
        ]
        for stage, make, part in stages:
            make()
            spec = spec.with_part(stage, **part) if part else spec
            paths.append(folder / f"{cfg.architecture}-{stage}.safetensors")
            save_model(paths[-1], model, spec)
    return paths


def _ffns(model: nn.Module) -> list[FFN]:
    return list(find(model, FFN).values())


def _router() -> dict[str, Any]:
    return {"kind": "regression", "width": 3, "projection_width": None}


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = make_optimizer(model, TrainingConfig(epochs=1, lr=0.1))
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


@cache
def _saved(folder: Path) -> list[tuple[Callable[[Path], object], Path]]:
    """Whole files, and what each is loaded by."""
    found: list[tuple[Callable[[Path], object], Path]] = []
    for path in _save_models(folder):
        found += [(load_model, path), (load_dense_model, path)]
    path = folder / "state.safetensors"
    history = [{"epoch": 1, "loss": 0.5}]
    state = TrainingState(path, 1.0)
    state.save(*_trained(), 3, history, {"loss": 0.25})
    state.wait()
    return [*found, *[(_load_state, path)] * (len(found) // 2)]


def _load_state(path: Path) -> None:
    """Restore a state, and take the next step."""
    model, optimizer = _trained()
    step, history, sums = TrainingState(path, 1.0).load(model, optimizer)
    optimizer.step()
    state = TrainingState(path, 1.0)
    state.save(model, optimizer, step + 1, history, sums)
    state.wait()


def case(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A call that loads a damaged file."""
    load, whole = rng.choice(_saved(folder))
    content, path = whole.read_bytes(), folder / "damaged" / whole.name
    path.parent.mkdir(exist_ok=True)
    damage = rng.random()
    if damage < 0.3:
        path.write_bytes(damaged(content, rng))
    elif damage < 0.5:
        path.write_bytes(_other_header(content, rng))
    else:
        path.write_bytes(content)
        _save_other(path, rng)
    return lambda: load(path)


def _other_header(content: bytes, rng: random.Random) -> bytes:
    """The file with changes in its header."""
    length = int.from_bytes(content[:8], "little")
    header = mutated(json.loads(content[8 : 8 + length]), rng, aliases=False)
    text = json_of(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _save_other(path: Path, rng: random.Random) -> None:
    """Save a file anew, whole, with other tensors or another description."""
    tensors, metadata = load_tensors(path, "")
    (key,) = metadata.keys() & {"spec", "about"}
    described = json.loads(metadata[key])
    if rng.random() < 0.7:
        described = _small(mutated(described, rng, aliases=False))
    else:
        tensors = _other_tensors(tensors, rng)
    save_tensors(path, tensors, {key: json_of(described)})


def _other_tensors(tensors: dict[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """The tensors, one of them missing, renamed, of another shape or number format, or NaN."""
    name = rng.choice(list(tensors))
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    tensor = tensors[name]
    changed = rng.choice(
        (
            {},
            {f"{name}x": tensor},
            {name.replace(".", "/"): tensor},
            {name: tensor.flatten()[1:].clone()},
            {name: tensor[None].clone()},
            {name: tensor.double()},
            {name: tensor.to(torch.int32)},
            {name: torch.full_like(tensor.float(), float("nan"))},
        )
    )
    return rest | changed


def _small(tree: Any) -> Any:
    """The tree with its large numbers made small."""
    for holder, key in places(tree):
        value = holder[key]
        if type(value) in (int, float) and abs(value) > LARGEST:
            holder[key] = LARGEST
    return tree
