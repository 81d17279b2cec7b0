"""Options of the methods that compare activations, or inputs of linear maps, with thresholds."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.stages import ClusteringMethod
from d2dmoe.config.strict import Strict
from d2dmoe.config.trained import TrainedVariant

Samples = Annotated[
    int, Field(gt=0, description="Training samples by whose activations thresholds are found")
]
BatchSize = Annotated[int, Field(gt=0, description="Samples per step of the calibration")]
Step = Annotated[
    float,
    Field(gt=0, le=1, description="Share of a mean map's cost that a step of the search saves"),
]
SAMPLES, BATCH_SIZE, STEP = 128, 32, 0.05


class ThresholdsConfig(Strict):
    """Thresholds of the FFNs' hidden channels: CATS and CHESS."""

    score: Literal["magnitude", "contextual"] = Field(
        description="magnitude: |act(gate z)|, CATS's; contextual: times what the channel weighs"
    )
    expert_size: int | None = Field(
        None, gt=0, description="Channels that are skipped together; null: each by itself"
    )
    clustering: ClusteringMethod = Field("kmeans", description="How these are chosen")
    attention: bool = Field(False, description="Whether the inputs of Q and O have some too")
    samples: Samples = SAMPLES
    batch_size: BatchSize = BATCH_SIZE


class InputThresholdsConfig(Strict):
    """Thresholds of the inputs of all linear maps of the blocks: TEAL."""

    step: Step = STEP
    samples: Samples = SAMPLES
    batch_size: BatchSize = BATCH_SIZE


class _ThresholdsVariant(TrainedVariant):
    """What all of them have."""

    samples: Samples = SAMPLES
    batch_size: BatchSize = BATCH_SIZE


class HiddenVariant(_ThresholdsVariant):
    """Thresholds of hidden channels."""

    expert_size: int | None = Field(
        None,
        gt=0,
        description="Skip experts of so many channels, all of which are below; null: channels",
    )


class CATSVariant(HiddenVariant):
    """A threshold for each layer's hidden channels."""

    method: Literal["cats"] = Field(description="CATS: one threshold for a layer's channels")


class CHESSVariant(HiddenVariant):
    """A threshold for each hidden channel."""

    method: Literal["chess"] = Field(description="CHESS: a threshold for each channel")
    attention: bool = Field(
        False, description="Threshold the inputs of the attention's maps Q and O too"
    )


class TEALVariant(_ThresholdsVariant):
    """A threshold for the inputs of each linear map."""

    method: Literal["teal"] = Field(description="TEAL: small inputs of every linear map are zeros")
    step: Step = STEP
