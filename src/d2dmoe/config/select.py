"""The operating points of each knob; one evaluation measures all of a knob."""

from typing import Annotated, Any

from pydantic import Field, create_model

from d2dmoe.config.strict import Strict, distinct
from d2dmoe.methods import CONVERSION_KNOBS, METHODS, Knob
from d2dmoe.selection_rules import RULES, Rule

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]


def _values(knob: Rule | Knob) -> Any:
    kind = list[Count] if knob.whole else list[Share]
    how = Field(description=knob.description), distinct("an operating point")
    return Annotated[kind, *how], []


_KNOBS: list[Rule | Knob] = [
    *RULES.values(),
    *CONVERSION_KNOBS.values(),
    *(m.knob for m in METHODS.values() if m.knob),
]

SelectConfig = create_model(
    "SelectConfig",
    __base__=Strict,
    __doc__="Operating points: those of each selection rule, and of each method's own knob.",
    **{knob.name: _values(knob) for knob in _KNOBS},
)
