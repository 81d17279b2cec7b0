"""Options of the one training loop that every stage uses."""

import math
from typing import Annotated

from pydantic import Field, model_validator

from d2dmoe.config.augment import AugmentConfig
from d2dmoe.config.strict import COMPLETED, Strict

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(Strict):
    """AdamW, cosine decay after a linear warm-up."""

    epochs: Annotated[float, COMPLETED] = Field(
        ge=0, description="Passes over the training samples; the last may be a part of one"
    )
    lr: Annotated[float, COMPLETED] = Field(gt=0, description="Peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the cosine")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps that warm up linearly")
    batch_size: int = Field(128, gt=0, description="Samples per step")
    accumulate: int = Field(
        1, gt=0, description="Parts that a batch is computed in, to save memory; divides batch_size"
    )
    weight_decay: float = Field(0.05, ge=0, description="On matrices; never on biases and norms")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), strict=False, description="AdamW's betas")
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; null: no clipping")
    mixup: float = Field(0.0, ge=0, description="Beta parameter of mixup; 0: none")
    cutmix: float = Field(0.0, ge=0, description="Beta parameter of cutmix; 0: none")
    augment: AugmentConfig = Field(AugmentConfig(), description="Random flips and crops")
    threads: int = Field(
        1, gt=0, description="CPU threads; sums depend on it, so it is a part of the result"
    )
    workers: int = Field(
        0,
        ge=0,
        description="Processes that read samples and change them at random (for images with "
        "in_memory: false); of each GPU's process, where several train together",
    )

    @model_validator(mode="after")
    def _rate_falls(self):
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} must not exceed lr = {self.lr}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate = {self.accumulate} must divide batch_size = {self.batch_size}"
            )
        return self

    def steps_per_epoch(self, samples: int) -> int:
        """Steps of a pass over so many training samples; a last, smaller batch is left out unless
        it is the only one."""
        return max(1, samples // self.batch_size)

    def steps(self, samples: int) -> int:
        """Steps of the whole training; at least one, unless no epochs are asked for."""
        total = round(self.epochs * self.steps_per_epoch(samples))
        return max(total, min(1, math.ceil(self.epochs)))


class TaskTrainingConfig(TrainingConfig):
    """Training on the task's own loss, the cross-entropy."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Smoothing of the targets")
