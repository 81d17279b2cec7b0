"""The tables that every figure, claim and notebook reads, gathered from the evaluations."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from d2dmoe.errors import DataError
from d2dmoe.io.read import read_table

TRADEOFF_COLUMNS = [
    "task",
    "model",
    "dataset",
    "method",
    "variant",
    "seed",
    "knob",
    "knob_value",
    "flops",
    "flops_ratio",
    "params",
    "metric",
    "value",
    "relative_value",
]
RATIOS = [round(0.1 * i, 1) for i in range(9, 0, -1)]  # budgets that the summary reports
FALLING = ("loss", "perplexity")  # metrics of which less is better
BUDGETS = [0.5, 0.6, 0.7, 0.8]  # ratios at which claims compare curves
KEPT = {"99": 0.99, "95": 0.95}  # shares of the dense quality
LAYER = ["tokens", "d_model", "num_experts", "expert_size", "activation"]  # what tells timed layers
TIMED = ["device", "dtype", "mask", "fraction", "backend", "median_ms", "p20_ms", "p80_ms"]
POINT = ["task", "method", "variant", "seed"]
ENDS = ("", "_low", "_high")  # an estimate, and its interval
ESTIMATED = [f"{x}_at_{name}{e}" for name in KEPT for x in ("flops_ratio", "quality") for e in ENDS]
ESTIMATED += [f"quality_at_{ratio}{end}" for ratio in RATIOS for end in ENDS]
SUMMARY = ["task", "method", "variant", "metric", "seeds", "samples", *ESTIMATED]
COMPARISON = ["task", "variant", "rival", "metric", "measure", "at", "difference", "low", "high"]
COMPARISON += ["verdict", "seeds", "samples"]
COLUMNS: dict[str, list[str]] = {  # that figures and claims need, by the name of their table
    "tradeoff": TRADEOFF_COLUMNS,
    "layers": [*POINT, "knob", "knob_value", "role", "layer", "num_experts", "experts", "std"],
    "summary": SUMMARY,
    "comparisons": COMPARISON,
    "activity": [*POINT, "layer", "active", "d_ff", "tokens"],
    "patch_load": [*POINT, "image", "object_share", "load"],
    "table": [*TIMED, "num_experts", "expert_size"],  # of any of the benchmarks
}


def gather(entries: list[dict[str, Any]], columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of many tables in one; each entry's other keys become leading columns.

    Args:
        entries: dicts with the `path` of a CSV file and the values to put before its columns.
        columns: those of the files that are needed.

    Returns:
        The rows, all with the same columns: those that a file lacks are empty.

    Raises:
        DataError: a file is missing or damaged, or lacks a column that is needed.
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        labels = {key: value for key, value in entry.items() if key != "path"}
        table = read_table(Path(entry["path"]), columns)
        rows += [labels | row for row in table.to_dict("records")]
    empty = dict.fromkeys((name for row in rows for name in row), "")
    return [empty | row for row in rows]


def tradeoff(entries: list[dict[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row per operating point and metric, relative to the task's dense reference of the same
    seed.

    Cost is relative to the dense model's, quality to the better of the dense model and the dense
    model fine-tuned for as many extra steps as a conversion takes. The better one on the same split
    is the stricter reference.

    Args:
        entries: as for `gather`, each with task, model, dataset, method, variant, seed, and
            `reference`: whether it is of a dense model that the others are relative to.
        metrics: columns of the entries' tables, the main one first.

    Raises:
        DataError: a table is missing or damaged, or a quality cannot be had relative to another.
    """
    rows = gather(entries, ["knob", "knob_value", "flops", "params", *metrics])
    references: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in (r for r in rows if r["reference"]):
        references.setdefault((row["task"], row["seed"]), []).append(row)
    return [
        _relative(row, metric, references[row["task"], row["seed"]])
        for row in rows
        for metric in metrics
    ]


def _relative(row: dict[str, Any], metric: str, references: list[dict[str, Any]]) -> dict[str, Any]:
    values = [reference[metric] for reference in references]
    falls = metric in FALLING
    # Higher is better throughout.
    above, below = (min(values), row[metric]) if falls else (row[metric], max(values))
    if below <= 0:
        raise DataError(
            f"task {row['task']}, seed {row['seed']}: {metric} {below:g} of "
            f"{row['variant'] if falls else 'the dense models'}: nothing is relative to 0. Give "
            "the task more test samples."
        )
    relative = above / below
    return row | {
        "metric": metric,
        "value": row[metric],
        "relative_value": relative,
        "flops_ratio": row["flops"] / references[0]["flops"],
    }


def of_first_layer(timed: pd.DataFrame) -> pd.Series:
    """Which rows of `layer.csv` or `cpu.csv` are of the layer that it lists first; boolean."""
    return (timed[LAYER] == timed[LAYER].iloc[0]).all(axis=1)
