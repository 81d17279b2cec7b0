"""What the figures of a task compare."""

from typing import Annotated, Any

from pydantic import Field, create_model

from d2dmoe.config.named import OneOf
from d2dmoe.config.strict import Label, Name, Strict
from d2dmoe.figures import Figure, by_key
from d2dmoe.lookup import resolve

Variants = list[Name]


COMPARING = {key: figure for key, figure in by_key().items() if figure.compares}


class _Figures(Strict):
    """Which variants each figure of the task compares, in the legend's order; a figure that is left
    out is not drawn."""

    labels: dict[Annotated[str, OneOf(COMPARING, "figure")], dict[Name, Label]] = Field(
        {}, description="By figure: names in its legend where they differ from the variants' own"
    )

    def variants(self) -> dict[str, list[str]]:
        """The variants that each figure names, by the figure's key."""
        named = {f"labels.{key}": list(names) for key, names in self.labels.items()}
        for key, value in self.of_figures().items():
            if isinstance(value, list):
                named[key] = value
            else:
                named |= {f"{key}.{option}": names for option, names in value.named().items()}
        return named

    def of_figures(self) -> dict[str, Any]:
        """The options of each figure that is drawn, by its key."""
        found = {key: getattr(self, key) for key in by_key()}
        return {key: value for key, value in found.items() if value}


def _options(figure: Figure) -> Any:
    if figure.options is None:
        return Variants, Field([], description=figure.description)
    return resolve(figure.options) | None, Field(None, description=figure.description)


FiguresConfig = create_model(
    "FiguresConfig",
    __base__=_Figures,
    __doc__=_Figures.__doc__,
    **{key: _options(figure) for key, figure in by_key().items()},
)
