"""Compressed models that are converted in the dense model's place (claim C10)."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.model import ModelConfig
from d2dmoe.config.strict import Label, Strict
from d2dmoe.config.training import TaskTrainingConfig

BelowOne = Annotated[float, Field(ge=0, lt=1)]
QuantizedWeights = Literal["int8"]


class PruneConfig(TaskTrainingConfig):
    """The dense model without its least important heads and hidden neurons, trained on."""

    kind: Literal["prune"]
    heads: BelowOne = Field(description="Share of the heads of each attention that is removed")
    neurons: BelowOne = Field(description="Share of the hidden neurons of each FFN that is removed")
    samples: int = Field(
        1024, gt=0, description="Training samples that the importance is estimated on"
    )


def remaining(count: int, share: float) -> int:
    """How many of `count` heads or neurons are left when a share of them is removed: at least 1."""
    return max(1, round(count * (1 - share)))


class DistillConfig(TaskTrainingConfig):
    """A smaller model, trained from its own initial weights to imitate the dense model."""

    kind: Literal["distill"]
    model: ModelConfig
    temperature: float = Field(2.0, gt=0, description="Softens both models' probabilities")
    imitation: float = Field(
        0.5, ge=0, le=1, description="Weight of the imitation; the rest is the task's own loss"
    )


class PrunedBase(PruneConfig):
    """A pruned model with a name for figures, which is no option of the step that makes it."""

    label: Label = Field(description="Name in the legends")

    @property
    def step(self) -> PruneConfig:
        """The options of the step."""
        return PruneConfig(**self.model_dump(exclude={"label"}))


class DistilledBase(DistillConfig):
    """A distilled model with a name for figures, which is no option of the step that makes it."""

    label: Label = Field(description="Name in the legends")

    @property
    def step(self) -> DistillConfig:
        """The options of the step."""
        return DistillConfig(**self.model_dump(exclude={"label"}))


BaseConfig = Annotated[PrunedBase | DistilledBase, Field(discriminator="kind")]


class QuantizeConfig(Strict):
    """Weights in few bits after the training; activations stay as they are."""

    weights: QuantizedWeights = Field(description="Symmetric, a scale for each output")
