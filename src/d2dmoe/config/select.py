"""The operating points of each knob; one evaluation measures all of a knob."""

from typing import Annotated, Any

from pydantic import Field, create_model, field_validator

from d2dmoe.config.strict import Strict
from d2dmoe.methods import CONVERSION_KNOBS, METHODS, Knob
from d2dmoe.selection_rules import RULES, Rule

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class _Select(Strict):
    """Operating points: those of each selection rule, and of each method's own knob."""

    @field_validator("*")
    @classmethod
    def _distinct(cls, values: list) -> list:
        if len(set(values)) != len(values):
            raise ValueError("must not repeat an operating point")
        return values


def _values(knob: Rule | Knob) -> Any:
    kind = list[Count] if knob.whole else list[Share]
    return kind, Field([], description=knob.description)


_KNOBS: list[Rule | Knob] = [
    *RULES.values(),
    *CONVERSION_KNOBS.values(),
    *(m.knob for m in METHODS.values() if m.knob),
]

SelectConfig = create_model(
    "SelectConfig",
    __base__=_Select,
    __doc__=_Select.__doc__,
    **{knob.name: _values(knob) for knob in _KNOBS},
)
