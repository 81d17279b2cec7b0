"""The README's table, from a summary: python tools/readme_table.py results/reference/miniature"""

import sys
from pathlib import Path

import pandas as pd

SHOWN = ["dense", "dense_finetuned", "d2dmoe", "moefication"]
NAMES = {
    "dense": "dense",
    "dense_finetuned": "dense, fine-tuned as long",
    "d2dmoe": "**D2DMoE**",
    "moefication": "MoEfication",
}


def cell(row: pd.Series, measure: str, scale: float = 1, digits: int = 3) -> str:
    """A mean with its standard deviation over seeds."""
    mean, std = row[f"{measure}_mean"], row[f"{measure}_std"]
    if pd.isna(mean):
        return "–"
    spread = "" if pd.isna(std) else f" ± {scale * std:.{digits}f}"
    return f"{scale * mean:.{digits}f}{spread}"


def main(folder: Path) -> None:
    """Print the table in Markdown."""
    summary = pd.read_csv(folder / "tables/summary.csv").set_index("variant")
    tradeoff = pd.read_csv(folder / "tables/tradeoff.csv")
    accuracy = tradeoff[tradeoff["method"] == "dense"].groupby("variant")["value"]
    budgets = ["0.5", "0.6", "0.7", "0.8"]
    print("| | test accuracy, % | FLOPs for 99 % of the dense accuracy |", end="")
    print("".join(f" quality at {b} |" for b in budgets))
    print("| --- | --- | --- |" + " --- |" * len(budgets))
    for variant in SHOWN:
        row = summary.loc[variant]
        if row["method"] == "dense":
            values = 100 * accuracy.get_group(variant)
            cells = [f"{values.mean():.2f} ± {values.std():.2f}", "1", *("–" for _ in budgets)]
        else:
            qualities = [cell(row, f"quality_at_{b}", 100, 2) for b in budgets]
            cells = ["", cell(row, "flops_ratio_at_99"), *qualities]
        print(f"| {NAMES[variant]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
