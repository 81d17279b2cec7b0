"""Options of an architecture."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.model import DividedHeads


class GatedViTConfig(DividedHeads):
    """torchvision's VisionTransformer with gated FFNs."""

    forms = {}
    forms_text = "'scratch'"

    architecture: Literal["gated_vit"]
    patch_size: int = Field(gt=0, description="Side of a patch, pixels")

    @property
    def name(self) -> str:
        """The tables' model column."""
        return f"{super().name}-{self.activation}"
