"""Pretrained weights that lie in a folder or file, looked at before any job starts.

Only what is small is read: config.json, and the headers of the safetensors files.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from d2dmoe.config.model import BLOCK, LanguageConfig, TransformerConfig
from d2dmoe.errors import CheckpointError
from d2dmoe.io.shapes import tensor_shapes

WEIGHTS = "model.safetensors"


def check_weights(cfg: TransformerConfig, root: Path) -> None:
    """Refuse weights of a path that are not there or not those of the model; `root` is the
    repository root. What a hub or a library has is not looked at.

    Raises:
        CheckpointError: they are missing, damaged, or of another architecture or size.
    """
    kind, _, name = cfg.weights.partition(":")
    if kind != "path":
        return
    try:
        if isinstance(cfg, LanguageConfig):
            _check_folder(cfg, root / name)
        else:
            shapes = tensor_shapes(root / name)
            _check_blocks(cfg, shapes)
            _check_sizes(cfg, shapes)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{cfg.weights} cannot be read: {error}. Correct the path, or save the weights again: "
            f"{cfg.forms_text}."
        ) from error


def _check_folder(cfg: LanguageConfig, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} holds no object")
    cfg.check_config(config)
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        _check_blocks(cfg, tensor_shapes(folder / WEIGHTS))
        return
    files = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
    for file in sorted(set(files.values())):
        tensor_shapes(folder / file)
    _check_blocks(cfg, files)


def _check_blocks(cfg: TransformerConfig, names: Iterable[str]) -> None:
    """The tensors' names number as many blocks as are configured, if they number any."""
    found = {int(match[1]) for match in map(BLOCK.search, names) if match}
    if found and len(found) != cfg.layers:
        raise CheckpointError(
            f"{cfg.weights} does not fit the configured model: it has {len(found)} blocks "
            f"(configured: layers {cfg.layers}). Correct model.layers, or give other weights."
        )


def _check_sizes(cfg: TransformerConfig, shapes: Mapping[str, list[int]]) -> None:
    """The first tensor of each kind that is there is as large as configured."""
    for option, (pattern, axis) in cfg.tensor_sizes.items():
        fitting = (shape for name, shape in shapes.items() if re.fullmatch(pattern, name))
        shape = next(fitting, None)
        size = getattr(cfg, option)
        if shape is not None and shape[axis : axis + 1] != [size]:
            raise CheckpointError(
                f"{cfg.weights} does not fit the configured model: a tensor has the shape {shape} "
                f"where {option} is {size}. Give the model section the sizes of the weights."
            )
