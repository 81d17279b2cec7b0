"""The compositions that a task runs, each by a method."""

from pydantic import Field

from d2dmoe.config.strict import Label, Strict

FINETUNED = "_finetuned"  # ends the name of a dense or compressed model that was trained on

DENSE_VARIANTS = {"dense": "dense", f"dense{FINETUNED}": "dense, fine-tuned"}
"""The variants that every task has, and their names in the legends."""


class Variant(Strict):
    """What all variants have."""

    method: str
    label: Label = Field(description="Name in the legends")
