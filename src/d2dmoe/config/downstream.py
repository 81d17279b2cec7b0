"""Which downstream evaluations a task asks for: zero-shot BoolQ at compute budgets (table 1)."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from d2dmoe.config.sources import HUB, Forms, check_form, described
from d2dmoe.config.strict import Strict, distinct
from d2dmoe.errors import DataError

BOOLQ_FORMS: Forms = {
    "hub": HUB,
    "path": (r".+", "path:FILE (.jsonl or .parquet with question, passage and label or answer)"),
}
Budget = Annotated[float, Field(gt=0, le=1)]


class BoolQConfig(Strict):
    """Zero-shot BoolQ by log-likelihood, by lm-eval (`uv run --extra lm-eval …`)."""

    source: str = Field(
        "hub:google/boolq", description="Where the questions come from: " + described(BOOLQ_FORMS)
    )
    budgets: Annotated[
        list[Budget],
        Field(
            min_length=1, description="FLOPs relative to the dense model, kept on validation data"
        ),
        distinct("a value"),
    ] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25, 0.1]
    variants: Annotated[
        list[str],
        Field(min_length=1, description="Variants to evaluate, beside the dense models"),
        distinct("a value"),
    ]
    limit: int | None = Field(None, ge=2, description="Ask the first so many questions only")

    @field_validator("source")
    @classmethod
    def _has_a_known_form(cls, source: str) -> str:
        return check_form(source, BOOLQ_FORMS, "BoolQ set")


def check_boolq(cfg: BoolQConfig, root: Path) -> None:
    """Refuse a BoolQ set whose local file is not there; opens no file and no connection.

    Raises:
        DataError: it is not there, or of another kind.
    """
    kind, _, name = cfg.source.partition(":")
    is_set = Path(name).suffix in (".jsonl", ".parquet") and (root / name).is_file()
    if kind == "path" and not is_set:
        raise DataError(
            f"boolq.source = {cfg.source}: there is no such .jsonl or .parquet file. Correct it."
        )
