"""The tables of docs/neighbours.md, from published results:
python tools/neighbours_table.py results/reference/neighbours"""

import sys
from pathlib import Path

import pandas as pd
from readme_table import cell, heading, line

from d2dmoe.claims import CLAIMS
from d2dmoe.claims.evidence import evidence_of
from d2dmoe.claims.ledger import ledger
from d2dmoe.io.read import read_table
from d2dmoe.plan.claims import claim_options, claim_tables
from d2dmoe.plan.published import plan_of
from d2dmoe.tables import COLUMNS, FALLING

SUITE = "neighbours"
COST, QUALITY = "flops_ratio_at_99", "quality_at_0.7"
TESTED = [claim for name, claim in CLAIMS.items() if name.startswith("N")]


def costs(table: pd.DataFrame, language: list[str]) -> list[str]:
    """A line a variant: for each task the cost at 99 %; of language models the quality at 0.7."""
    tasks = [*table["task"].unique()]
    places = [(task, COST) for task in tasks] + [(task, QUALITY) for task in language]
    heads = [f"{task}{' at 0.7' * (measure == QUALITY)}" for task, measure in places]
    lines = heading(["method", "training", *heads])
    for _, rows in table.groupby("variant", sort=False):
        of_task = rows.set_index("task")
        cells = [measured(of_task, *place) for place in places]
        training = "nothing further" if rows["training_free"].all() else "yes"
        lines.append(line([rows["label"].iloc[0], training, *cells]))
    return lines


def measured(of_task: pd.DataFrame, task: str, measure: str) -> str:
    """A variant's number with its interval; empty where the task has not that variant."""
    if task not in of_task.index:
        return ""
    return cell(of_task.loc[task], measure, *((100, 1) if measure == QUALITY else ()))


def verdicts(folder: Path) -> list[str]:
    """A line a claim, a column a task: what this version's claims say of the tables."""
    plan = plan_of(folder / "config.yaml")
    tables = {
        name: read_table(folder / "tables" / SUITE / f"{name}.csv", COLUMNS[name])
        for name in claim_tables(plan, SUITE)
        if name != "activity"  # no figure shows it, so it is not published
    }
    options, tasks = claim_options(plan, SUITE), plan.tasks_of(SUITE)
    found = [
        {row["claim"]: row["verdict"] for row in ledger([evidence], TESTED)}
        for evidence in (evidence_of(task, tables, **options[task]) for task in tasks)
    ]
    rows = [line([c.name, c.paper_says, *(own[c.name] for own in found)]) for c in TESTED]
    return [*heading(["claim", "its paper says", *tasks]), *rows]


def lines(folder: Path) -> list[str]:
    """Both tables, an empty line between them."""
    own = folder / "tables" / SUITE
    summary = pd.read_csv(own / "summary.csv")
    falling = summary.loc[summary["metric"].isin(FALLING), "task"]
    table = pd.read_csv(own / "neighbours.csv")
    return [*costs(table, [*falling.unique()]), "", *verdicts(folder)]


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
