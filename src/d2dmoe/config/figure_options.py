"""Options of figures that compare more than a list of variants."""

from pydantic import Field

from d2dmoe.config.strict import Name, Strict


class LayersConfig(Strict):
    """Figures 8a and 16: executed experts per layer."""

    variants: list[Name] = Field(min_length=1, description="Compared in each panel")
    values: list[float] = Field(min_length=1, description="Operating points, a panel each")

    def named(self) -> dict[str, list[str]]:
        """The variants that it names, by the option that does."""
        return {"variants": self.variants}


class LoadMapsConfig(Strict):
    """Figure 8b: executed experts per patch of test images."""

    variant: Name = Field(description="Which variant routes")
    value: float = Field(ge=0, description="Its operating point (tau, k or p)")
    images: int = Field(8, gt=0, description="Test images drawn")
    foreground: bool = Field(
        False, description="The background is black, so what is not black is the object"
    )

    def named(self) -> dict[str, list[str]]:
        """The variants that it names, by the option that does."""
        return {"variant": [self.variant]}
