"""Saved models: one safetensors file with the weights and, in its header, what they belong to."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from d2dmoe.config.model import TransformerConfig
from d2dmoe.errors import CheckpointError, UnknownName, UserError
from d2dmoe.ffn import set_activation
from d2dmoe.io.csvfile import write_csv
from d2dmoe.io.files import write_atomically
from d2dmoe.io.tensors import distinct, gathered, load_distinct, load_tensors, save_tensors
from d2dmoe.models.build import create_model
from d2dmoe.spec import ModelSpec, build

REBUILD = "Delete it and run the same command again: the step that makes it is then repeated."

EVERY_EXPERT = ("dynamic_k", 0.0)  # what layers start with

Trained = tuple[nn.Module, ModelSpec, list[dict]]
"""What a stage returns: the model, its spec, and the history, a row per epoch; empty where nothing
is trained."""


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Save weights, spec and operating point atomically as one safetensors file.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    metadata = {"spec": json.dumps(spec.model_dump())}
    if points := _operating_points(model):
        metadata["operating_points"] = json.dumps(points)
    save_tensors(path, gathered(distinct(model.state_dict())), metadata)


def _operating_points(model: nn.Module) -> dict[str, tuple[str, float]]:
    """Rule and value of the routed layers, by their names; empty where every expert runs, as in a
    model that nobody has set a point of."""
    points: dict[str, Any] = {
        name: layer.operating_point
        for name, layer in model.named_modules()
        if hasattr(layer, "operating_point") and layer.router is not None
    }
    return points if any(point != EVERY_EXPERT for point in points.values()) else {}


def save_history(path: Path, history: list[dict]) -> None:
    """Save a training's history as CSV, atomically.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    write_csv(path, history, list(history[0]) if history else ["epoch"])


def save_lineage(path: Path, lineage: dict[str, Any]) -> None:
    """Save what a folder's model was made of, with which options, as YAML.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    import yaml  # of the workflow alone

    text = yaml.safe_dump(lineage, allow_unicode=True, sort_keys=False)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_model(path: Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Spec and weights of a saved model.

    Raises:
        CheckpointError: the file is missing, damaged, or no saved model.
    """
    spec, tensors, _metadata = _read(path)
    return spec, tensors


def _read(path: Path) -> tuple[ModelSpec, dict[str, Tensor], dict[str, str]]:
    tensors, metadata = load_tensors(path, REBUILD)
    try:
        return ModelSpec.model_validate_json(metadata["spec"]), tensors, metadata
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(["spec", *map(str, fault["loc"])])
        raise CheckpointError(
            f"{path} is not a model saved by this package: {where}: {fault['msg']}"
        ) from error
    except KeyError as error:
        raise CheckpointError(f"{path} is not a model saved by this package: no {error}") from error


def load_model(path: Path) -> tuple[nn.Module, ModelSpec]:
    """A saved model of any stage, in evaluation mode, at the operating point that it was saved at.

    Raises:
        CheckpointError: the file is missing, damaged, or no saved model, or no table has what it
            was made by.
    """
    spec, tensors, metadata = _read(path)
    try:
        model = build(spec)
    except UnknownName as error:
        raise CheckpointError(f"{path} cannot be rebuilt: {error}") from error
    except Exception as error:  # modules refuse impossible options in a dozen unrelated types
        raise CheckpointError(
            f"{path} cannot be rebuilt: its spec is impossible ({type(error).__name__}: {error}). "
            f"{REBUILD}"
        ) from error
    try:
        load_distinct(model, tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own spec: {error}. {REBUILD}") from error
    _restore(model, metadata, path)
    return model.eval(), spec


def _restore(model: nn.Module, metadata: dict[str, str], path: Path) -> None:
    """Set the operating points of a file, in place."""
    try:
        for name, (rule, value) in json.loads(metadata.get("operating_points", "{}")).items():
            layer: Any = model.get_submodule(name)
            if getattr(layer, "router", None) is None:
                raise ValueError(f"{name} has no router")
            layer.operating_point = rule, value
    except (UserError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: impossible operating points: {error}. {REBUILD}") from error


def load_dense_model(path: Path) -> tuple[nn.Module, ModelSpec]:
    """A saved model whose FFNs are dense and whose weights are floats, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or holds another model.
    """
    model, spec = load_model(path)
    spec.check_dense(path)
    return model, spec


def fresh_model(cfg: TransformerConfig, about: dict[str, Any]) -> tuple[nn.Module, ModelSpec]:
    """A dense model with the initial weights that the configuration asks for, and its spec.

    Raises:
        CheckpointError: the weights cannot be had, or do not fit the configuration or the data.
    """
    options, model = create_model(cfg, about)
    if cfg.activation:
        set_activation(model, cfg.activation)
    spec = ModelSpec(
        architecture=cfg.architecture, options=options, data=about, activation=cfg.activation
    )
    return model, spec
