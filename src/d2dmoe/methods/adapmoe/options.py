"""AdapMoE's options."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.stages import RouterKindName
from d2dmoe.config.strict import Strict
from d2dmoe.config.variant import Variant


class SensitivityConfig(Strict):
    """How the layers' sensitivities are measured."""

    samples: int = Field(256, gt=0, description="Training samples whose losses are differentiated")
    batch_size: int = Field(32, gt=0, description="Samples per step")


class AdapMoEVariant(Variant):
    """D2DMoE's model, or one of another kind of routers, by the rule `sensitivity`."""

    method: Literal["adapmoe"] = Field(description="AdapMoE: gating by the layers' sensitivities")
    router: RouterKindName | None = Field(
        None, description="Kind of routers; null: as the task's section says"
    )
    sensitivity: SensitivityConfig = SensitivityConfig()
