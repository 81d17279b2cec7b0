"""The compositions that a task runs, each by a method."""

from typing import Literal

from pydantic import Field

from d2dmoe.config.strict import Label, Strict

FINETUNED = "_finetuned"  # ends the name of a dense or compressed model that was trained on

DENSE_VARIANTS = {"dense": "dense", f"dense{FINETUNED}": "dense, fine-tuned"}
"""The variants that every task has, and their names in the legends."""

Start = Literal["finetuned", "sparsified"]
"""What methods start from that need no model of their own: the dense one, fine-tuned, or the one
that D2DMoE splits into experts."""


class Variant(Strict):
    """What all variants have."""

    method: str
    label: Label = Field(description="Name in the legends")
