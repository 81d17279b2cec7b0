"""What rebuilds a model: its architecture, and what each stage left in it, in their order."""

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from d2dmoe.config.strict import Strict
from d2dmoe.errors import CheckpointError
from d2dmoe.ffn import set_activation
from d2dmoe.lookup import look_up, resolve
from d2dmoe.models.build import build_model
from d2dmoe.stages import STAGES


class ModelSpec(Strict):
    """All that is needed to rebuild a model's modules before its weights are loaded."""

    architecture: str
    options: dict[str, Any] = Field(description="What `models.build.build_model` needs")
    data: dict[str, Any] = Field(description="What it was trained on: classes, normalisation, …")
    activation: str | None = None  # of the dense model's FFNs; None: the architecture's own
    parts: dict[str, dict[str, Any]] = Field(
        {}, description="By stage, in their order: what its `rebuild` is called with"
    )

    def with_part(self, stage: str, **values: Any) -> "ModelSpec":
        """A copy, of a model that a stage has changed, last of all.

        Raises:
            UnknownName: there is no such stage.
        """
        look_up(STAGES, stage, "stage")
        before = {name: part for name, part in self.parts.items() if name != stage}
        return self.model_copy(update={"parts": before | {stage: values}})

    def part(self, stage: str, path: Path) -> dict[str, Any]:
        """What a stage left in the model of a file.

        Raises:
            CheckpointError: the stage did not make the model.
        """
        if stage not in self.parts:
            raise CheckpointError(
                f"{path} holds a model that the stage {stage} has not made; it was made by "
                f"{self._history}"
            )
        return self.parts[stage]

    def check_new(self, stage: str, path: Path) -> None:
        """Refuse what a stage has made already.

        Raises:
            CheckpointError: it has.
        """
        if stage in self.parts:
            raise CheckpointError(f"{path} holds a model that the stage {stage} has made already")

    def check_dense(self, path: Path) -> None:
        """Refuse a model whose FFNs are experts, or whose weights are no floats any more.

        Raises:
            CheckpointError: it is one.
        """
        if not all(look_up(STAGES, stage, "stage").dense for stage in self.parts):
            raise CheckpointError(
                f"{path} holds a model made by {self._history}; a dense one is needed"
            )

    @property
    def _history(self) -> str:
        return ", ".join(["dense", *self.parts])


def build(spec: ModelSpec) -> nn.Module:
    """The modules of a spec of any stage, with fresh weights.

    Raises:
        UnknownName: its architecture, or a stage that made it, is in no table.
    """
    model = build_model(spec.architecture, spec.options)
    if spec.activation:
        set_activation(model, spec.activation)
    for stage, values in spec.parts.items():
        rebuild = look_up(STAGES, stage, "stage").rebuild
        if rebuild:
            resolve(rebuild)(model, spec, **values)
    return model
