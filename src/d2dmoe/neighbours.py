"""The table of neighbouring methods: what each one needs, what is left of the model, and what it
keeps, beside the first variant of their figure, which they are compared with."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from d2dmoe.tables import ENDS

LABELS = ["task", "method", "variant", "label", "training_free", "epochs"]
BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5)
SUMMARISED = ["flops_ratio_at_99", *(f"quality_at_{budget}" for budget in BUDGETS)]
COPIED = [f"{measure}{end}" for measure in SUMMARISED for end in ENDS]
DIFFERENCE = ["rival", "difference", "low", "high", "verdict"]
COLUMNS = [*LABELS, "params_ratio", "seeds", *COPIED, *DIFFERENCE]
FLIPPED = {"better": "worse", "worse": "better"}


def neighbours(
    entries: Sequence[dict[str, Any]],
    tradeoff: pd.DataFrame,
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    dense: str,
) -> list[dict[str, Any]]:
    """A row per variant, in the order of the entries.

    Args:
        entries: dicts of `LABELS`: whether the method trains nothing, and its passes over the data
            beyond the dense model.
        tradeoff, summary, comparisons: the task's tables.
        dense: the variant whose parameters are 1.

    Returns:
        Rows of `COLUMNS`: cost and quality as in the summary; then the mean difference of the
        quality on all costs that the variant and the first one, its rival, have in common: above 0
        the variant is better. No number where there is none.
    """
    params = tradeoff.groupby("variant")["params"].mean()
    rows = summary.set_index("variant")
    rival = entries[0]["variant"]
    return [
        entry
        | {"params_ratio": params[entry["variant"]] / params[dense]}
        | rows.loc[entry["variant"], ["seeds", *COPIED]].to_dict()
        | _difference(comparisons, entry["variant"], rival)
        for entry in entries
    ]


def _difference(comparisons: pd.DataFrame, variant: str, rival: str) -> dict[str, Any]:
    """A variant's mean quality minus its rival's; the comparison has the rival first."""
    pair = (comparisons["variant"] == rival) & (comparisons["rival"] == variant)
    found = comparisons[pair & (comparisons["measure"] == "mean quality")]
    if found.empty:
        return dict.fromkeys(DIFFERENCE, "") | {"rival": "" if variant == rival else rival}
    row = found.iloc[0]
    return {
        "rival": rival,
        "difference": -row["difference"],
        "low": -row["high"],
        "high": -row["low"],
        "verdict": FLIPPED.get(row["verdict"], row["verdict"]),
    }
