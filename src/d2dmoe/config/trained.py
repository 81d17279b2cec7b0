"""Variants of methods that train nothing, or little: they begin with a model that others train."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.variant import Variant


class TrainedVariant(Variant):
    """A variant that begins with a dense model after all of its training."""

    start: Literal["finetuned", "sparsified"] = Field(
        "finetuned",
        description="What it begins with: the dense model fine-tuned as long as a conversion's "
        "stages together, or the sparsified model that D2DMoE splits",
    )
