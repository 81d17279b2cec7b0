"""Options of narrow dense models."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.strict import distinct
from d2dmoe.config.variant import Variant


class NarrowVariant(Variant):
    """The dense model with narrower FFNs, trained from scratch as long as it and its conversions
    together; an operating point for every width."""

    method: Literal["narrow"] = Field(description="A control: dense models that cost as little")
    widths: Annotated[
        list[Annotated[int, Field(gt=0)]],
        Field(min_length=1, description="Hidden neurons of an FFN; an operating point each"),
        distinct("a width"),
    ]
