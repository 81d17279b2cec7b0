"""Saved models: one safetensors file with the weights and, in its header, what they belong to."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from torch import Tensor, nn

from d2dmoe.attention import projection_mlps, replace_projections
from d2dmoe.compression.prune import resize
from d2dmoe.config.model import ModelConfig
from d2dmoe.config.strict import Strict
from d2dmoe.errors import CheckpointError
from d2dmoe.io.csvfile import write_csv
from d2dmoe.io.tensors import distinct, load_distinct, load_tensors, save_tensors
from d2dmoe.models import build_model, create_model, separate_projections
from d2dmoe.sparsity import set_activation

REBUILD = "Delete it and run the same command again: the step that makes it is then repeated."


class PrunedSpec(Strict):
    """What pruning left of each layer."""

    heads: int | None = Field(None, description="Heads of an attention; None: all, still fused")
    d_ff: int = Field(description="Hidden neurons of an FFN")


class ProjectionsSpec(Strict):
    """Attention projections that were replaced by MLPs."""

    widths: dict[str, int] = Field(description="Hidden neurons of the MLPs, by role (q, k, v, o)")
    expert_size: int | None = None  # None before the split


class RouterSpec(Strict):
    """Shape of the routers."""

    kind: str
    width: int
    projection_width: int | None = None  # of those in projections


class ExitSpec(Strict):
    """Where the early exits lie, and the shape of their heads."""

    every: int
    width: int | None


class HaltingSpec(Strict):
    """How the tokens of A-ViT halt."""

    depth: float = Field(description="Target depth that it was trained for, in blocks")
    gamma: float
    beta: float


class ModelSpec(Strict):
    """All that is needed to rebuild a model's modules before its weights are loaded."""

    architecture: str
    options: dict[str, Any] = Field(description="What `models.build_model` needs")
    data: dict[str, Any] = Field(description="What it was trained on: classes, normalisation, …")
    activation: str | None = None  # None: the architecture's own
    pruned: PrunedSpec | None = None  # None: the sizes are those of the options
    projections: ProjectionsSpec | None = None  # None: they are linear maps
    num_experts: int | None = None  # of an FFN; None before the split
    router: RouterSpec | None = None  # None before routers are trained
    exits: ExitSpec | None = None  # None: there are none
    halting: HaltingSpec | None = None  # None: every token runs every block
    quantized: Literal["int8"] | None = None  # None: the weights are floats

    def with_(self, **changes) -> "ModelSpec":
        """A copy with other values."""
        return ModelSpec.model_validate(self.model_dump() | changes)


Trained = tuple[nn.Module, ModelSpec, list[dict]]
"""What a stage that trains returns: the model, its spec, and the history, a row per epoch."""


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Save weights and spec atomically as one safetensors file.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    tensors = distinct(model.state_dict())
    save_tensors(path, tensors, {"spec": json.dumps(spec.model_dump(), sort_keys=True)})


def save_trained(trained: Trained, model_path: str, history_path: str) -> None:
    """Save a trained stage's model and history (CSV), atomically each.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    model, spec, history = trained
    save_model(Path(model_path), model, spec)
    columns = list(history[0]) if history else ["epoch"]
    write_csv(Path(history_path), history, columns)


def read_model(path: Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Spec and weights of a saved model.

    Raises:
        CheckpointError: the file is missing, damaged, or no saved model.
    """
    tensors, metadata = load_tensors(path, REBUILD)
    try:
        return ModelSpec.model_validate_json(metadata["spec"]), tensors
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{path} is not a model saved by this package: {error}") from error


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load all weights, in place.

    Raises:
        CheckpointError: names or shapes are not the model's.
    """
    try:
        load_distinct(model, tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own spec: {error}. {REBUILD}") from error


def fresh_model(cfg: ModelConfig, about: dict[str, Any]) -> tuple[nn.Module, ModelSpec]:
    """A dense model with the initial weights that the configuration asks for, and its spec.

    Raises:
        CheckpointError: the weights cannot be had, or do not fit the configuration or the data.
    """
    options, model = create_model(cfg, about)
    activation = "relu" if cfg.activation == "relu" else None
    if activation:
        set_activation(model, activation)
    spec = ModelSpec(
        architecture=cfg.architecture, options=options, data=about, activation=activation
    )
    return model, spec


def dense_model(spec: ModelSpec) -> nn.Module:
    """The spec's model before any split, with fresh weights."""
    model = build_model(spec.architecture, spec.options)
    if spec.pruned:
        resize(spec.architecture, model, spec.pruned.heads, spec.pruned.d_ff)
    if spec.projections:
        separate_projections(spec.architecture, model)
        replace_projections(model, projection_mlps(model, spec.projections.widths))
    if spec.activation:
        set_activation(model, spec.activation)
    return model


def load_dense_model(path: Path) -> tuple[nn.Module, ModelSpec]:
    """A saved model that has not been split, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or holds a split or quantised model.
    """
    spec, tensors = read_model(path)
    if spec.num_experts is not None:
        raise CheckpointError(f"{path} holds a model that was split already; a dense one is needed")
    if spec.quantized is not None:
        raise CheckpointError(f"{path} holds a quantised model; one with float weights is needed")
    model = dense_model(spec)
    load_weights(model, tensors, path)
    return model.eval(), spec
