"""CMoE's options; the defaults are its authors' where a small model can have them."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.trained import TrainedVariant
from d2dmoe.config.training import TaskTrainingConfig


class CMoESection(TaskTrainingConfig):
    """Of variants with the methods cmoe and cmoe_tuned; the training is cmoe_tuned's."""

    shared: int = Field(ge=0, description="Experts that always run: of the neurons that fire most")
    firing: int = Field(10, gt=0, description="Neurons that count as firing for a token")
    samples: int = Field(256, gt=0, description="Training samples that neurons are watched on")
    top_k: int = Field(
        gt=0, description="Experts that a token runs in fine-tuning, the shared ones among them"
    )
    balance_rate: float = Field(
        0.001, ge=0, description="Step of the offsets that balance the routed experts' loads"
    )


class CMoEConfig(CMoESection):
    """The same with the size of an expert; without epochs nothing is trained."""

    expert_size: int = Field(gt=0, description="Hidden neurons per expert; must divide d_ff")


class CMoEVariant(TrainedVariant):
    """Shared and routed experts, without any training."""

    method: Literal["cmoe"] = Field(description="CMoE: training-free experts, static top-k")


class TunedCMoEVariant(TrainedVariant):
    """The same, fine-tuned for a short time, which is taken from the training before."""

    method: Literal["cmoe_tuned"] = Field(description="CMoE with its short fine-tuning")
