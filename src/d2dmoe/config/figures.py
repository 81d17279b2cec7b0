"""What the figures of a task compare."""

from typing import Annotated, Literal

from pydantic import Field

from d2dmoe.config.strict import Strict

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*$")]  # names folders

FigureKey = Literal[
    "tradeoff",
    "base_sparsity",
    "active_neurons",
    "selection_rules",
    "layers",
    "layer_thresholds",
    "sparsity_levels",
    "activations",
    "expert_sizes",
    "phases",
    "routers",
    "splits",
    "router_widths",
    "pruned",
    "quantized",
    "distilled",
]


class LayersConfig(Strict):
    """Figures 8a and 16: executed experts per layer."""

    variants: list[Name] = Field(min_length=1, description="Compared in each panel")
    values: list[float] = Field(min_length=1, description="Operating points, a panel each")


class LoadMapsConfig(Strict):
    """Figure 8b: executed experts per patch of test images."""

    variant: Name = Field(description="Which variant routes")
    value: float = Field(ge=0, description="Its operating point (tau, k or p)")
    images: int = Field(8, gt=0, description="Test images drawn")
    foreground: bool = Field(
        False, description="The background is black, so what is not black is the object"
    )


Variants = list[Name]


class FiguresConfig(Strict):
    """Which variants each figure of the task compares, in the legend's order; a figure that is left
    out is not drawn."""

    tradeoff: Variants = Field([], description="Figure 4: cost against quality")
    base_sparsity: Variants = Field([], description="Figure 2a: bases of different sparsity")
    active_neurons: Variants = Field([], description="Figure 2b: histograms")
    selection_rules: Variants = Field([], description="Figure 2c: selection rules")
    layers: LayersConfig | None = Field(None, description="Figure 8a: base models compared")
    load_maps: LoadMapsConfig | None = Field(None, description="Figure 8b: load maps of images")
    phases: Variants = Field([], description="Figure 9a: each phase added in turn")
    sparsity_levels: Variants = Field([], description="Figure 9b: alphas")
    activations: Variants = Field([], description="Figure 9c: ReLU or GELU")
    expert_sizes: Variants = Field([], description="Figure 9d: expert sizes")
    layer_thresholds: LayersConfig | None = Field(None, description="Figure 16: thresholds")
    routers: Variants = Field(
        [], description="Ablation: what routers predict; regression first, then classification"
    )
    splits: Variants = Field([], description="Ablation: how neurons are grouped into experts")
    router_widths: Variants = Field([], description="Ablation: hidden widths of the routers")
    pruned: Variants = Field([], description="Figure 6: conversions of pruned models")
    quantized: Variants = Field([], description="Figure 7: conversions with quantised weights")
    distilled: Variants = Field([], description="Figure 12: conversions of distilled models")
    labels: dict[FigureKey, dict[Name, str]] = Field(
        {}, description="By figure: names in its legend where they differ from the variants' own"
    )

    def variants(self) -> dict[str, list[str]]:
        """The variants that each figure names, by the figure's key."""
        named = {f"labels.{key}": list(names) for key, names in self.labels.items()}
        if self.load_maps:
            named["load_maps.variant"] = [self.load_maps.variant]
        for key, value in self:
            if isinstance(value, LayersConfig):
                named[f"{key}.variants"] = value.variants
            elif isinstance(value, list):
                named[key] = value
        return named
