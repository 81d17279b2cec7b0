"""Options of quantised dense models."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.compression import QuantizedWeights
from d2dmoe.config.variant import Variant


class QuantizedVariant(Variant):
    """The dense model with quantised weights."""

    method: Literal["quantized"] = Field(description="One operating point: it costs as many FLOPs")
    quantize: QuantizedWeights
