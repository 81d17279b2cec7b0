"""LD-Pruner's options."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.strict import distinct
from d2dmoe.config.trained import TrainedVariant
from d2dmoe.config.training import TaskTrainingConfig


class LDPrunerSection(TaskTrainingConfig):
    """Of variants with the method ldpruner: the short fine-tuning of what is left; its passes are
    taken from the training before."""

    samples: int = Field(256, gt=0, description="Training samples that operators are ranked on")


class LDPrunerConfig(LDPrunerSection):
    """The same for one number of operators removed, of which a variant has several."""

    removed: int = Field(ge=0, description="Attentions and FFNs that leave the model")


class LDPrunerVariant(TrainedVariant):
    """A model without the operators that move its final representation least."""

    method: Literal["ldpruner"] = Field(description="LD-Pruner: operators removed, fine-tuned")
    removed: Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(
            min_length=1,
            description="Attentions and FFNs that leave the model; an operating point each",
        ),
        distinct("a number"),
    ]
