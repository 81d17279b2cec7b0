"""The base of every configuration model: strict types, unknown keys refused, values frozen."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """No coercion ("3" is no integer), no unknown keys, no infinities, frozen once validated."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
