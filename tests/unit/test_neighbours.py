"""Laws of the table of neighbouring methods."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from d2dmoe.neighbours import COLUMNS, COPIED, neighbours
from d2dmoe.tables import COMPARISON

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from neighbours_table import lines  # noqa: E402


def entry(variant: str, training_free: bool, epochs: float) -> dict:
    labels = {"task": "t", "method": variant, "variant": variant, "label": variant.upper()}
    return labels | {"training_free": training_free, "epochs": epochs}


ENTRIES = [entry("first", False, 10.0), entry("cheap", True, 0.0), entry("alone", True, 0.0)]


@pytest.fixture
def rows() -> dict[str, dict]:
    params = {"dense": [100, 100], "first": [110, 110], "cheap": [50, 70], "alone": [100, 100]}
    tradeoff = pd.DataFrame(
        {"variant": v, "params": count} for v, counts in params.items() for count in counts
    )
    summary = pd.DataFrame(
        {"variant": v, "seeds": 2} | {name: i + len(v) for i, name in enumerate(COPIED)}
        for v in ("dense", "first", "cheap", "alone", "elsewhere")
    )
    pair = {"variant": "first", "rival": "cheap", "at": 0.5}
    comparisons = pd.DataFrame(
        [
            pair | {"measure": "quality", "difference": 9.0, "low": 9.0, "high": 9.0},
            pair
            | {"measure": "mean quality", "difference": 0.02, "low": 0.01, "high": 0.05}
            | {"verdict": "better"},
        ],
        columns=COMPARISON,
    )
    made = neighbours(ENTRIES, tradeoff, summary, comparisons, "dense")
    return {row["variant"]: row for row in made}


def test_every_variant_has_a_row_with_what_it_needed_and_what_is_left_of_the_model(rows):
    assert list(rows) == ["first", "cheap", "alone"]
    assert all(row.keys() == {*COLUMNS} for row in rows.values())
    assert [row["params_ratio"] for row in rows.values()] == pytest.approx([1.1, 0.6, 1.0])
    assert rows["first"].items() >= ENTRIES[0].items() and rows["first"]["seeds"] == 2
    assert [rows["cheap"][name] for name in COPIED] == [5 + i for i in range(len(COPIED))]


def test_the_difference_is_the_variants_own_minus_that_of_the_first(rows):
    found = {key: rows["cheap"][key] for key in ("difference", "low", "high", "verdict", "rival")}
    expected = {"difference": -0.02, "low": -0.05, "high": -0.01}
    assert found == expected | {"verdict": "worse", "rival": "first"}


def test_there_is_none_to_itself_or_without_a_cost_in_common(rows):
    assert (rows["first"]["rival"], rows["first"]["difference"]) == ("", "")
    assert (rows["alone"]["rival"], rows["alone"]["difference"]) == ("first", "")


def test_the_docs_have_the_published_numbers():
    """If not: python tools/neighbours_table.py results/reference/neighbours"""
    written = {*(ROOT / "docs/neighbours.md").read_text().splitlines()}
    printed = lines(ROOT / "results/reference/neighbours")
    assert len(printed) > 30 and {*printed} <= written
