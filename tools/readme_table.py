"""The README's table, from results: python tools/readme_table.py results"""

import sys
from pathlib import Path

import pandas as pd

from d2dmoe.tables import ENDS

SHOWN = {
    "dense": "dense",
    "dense_finetuned": "dense, fine-tuned as long",
    "d2dmoe": "**D2DMoE**",
    "attention": "**D2DMoE, attention too**",
    "ours": "**D2DMoE, ours**",
    "moefication": "MoEfication",
    "ztw": "ZTW",
    "avit": "A-ViT",
}
BUDGETS = ("0.5", "0.6", "0.7", "0.8")


def cell(row: pd.Series, measure: str, scale: float = 1, digits: int = 3) -> str:
    """A mean over seeds with its interval, one of whose ends may be missing."""
    mean, *ends = (row[f"{measure}{end}"] for end in ENDS)
    if pd.isna(mean):
        return "–"
    low, high = ("…" if pd.isna(x) else f"{scale * x:.{digits}f}" for x in ends)
    return f"{scale * mean:.{digits}f} [{low}, {high}]"


def lines(task: str, summary: pd.DataFrame, tradeoff: pd.DataFrame) -> list[str]:
    """A task's lines of the table, by its main metric."""
    points = tradeoff[tradeoff["task"] == task]
    metric = points["metric"].iloc[0]
    points = points[points["metric"] == metric]
    rows = summary[(summary["task"] == task) & (summary["metric"] == metric)].set_index("variant")
    scale, unit = (100, " %") if metric == "accuracy" else (1, "")
    found = []
    for variant, name in SHOWN.items():
        if variant not in rows.index:
            continue
        row, cells = rows.loc[variant], ["", "1", *("–" for _ in BUDGETS)]
        if row["method"] == "dense":
            values = scale * points.loc[points["variant"] == variant, "value"]
            spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
            cells[0] = f"{metric} {values.mean():.2f}{spread}{unit}"
        else:
            qualities = [cell(row, f"quality_at_{budget}", 100, 2) for budget in BUDGETS]
            cells = ["", cell(row, "flops_ratio_at_99"), *qualities]
        found.append(line([task, name, *cells]))
    return found


def heading(names: list[str]) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [line(names), "|" + " --- |" * len(names)]


def line(cells: list[str]) -> str:
    """A row of it."""
    return "| " + " | ".join(cells) + " |"


def main(folder: Path) -> None:
    """Print the table in Markdown."""
    summary = pd.read_csv(folder / "tables/summary.csv")
    tradeoff = pd.read_csv(folder / "tables/tradeoff.csv")
    header = ["task", "model", "on test samples", "FLOPs for 99 % of the dense quality"]
    header += [f"quality at {budget}" for budget in BUDGETS]
    print("\n".join(heading(header)))
    for task in tradeoff["task"].unique():
        print("\n".join(lines(task, summary, tradeoff)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
