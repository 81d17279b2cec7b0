"""The base of every configuration model: strict types, unknown keys refused, values frozen."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*$")]  # of tasks, variants: names files


class Strict(BaseModel):
    """No coercion ("3" is no integer), no unknown keys, no infinities, frozen once validated."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # tables may get more records before the first use
    )
