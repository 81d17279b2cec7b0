"""Laws of the tables: what is relative to what, and what a curve comes to."""

import math

import pandas as pd
import pytest

from d2dmoe.io.csvfile import write_rows
from d2dmoe.tables import TRADEOFF_COLUMNS, gather, tradeoff

METRICS = ("accuracy", "loss", "perplexity")
POINTS = {  # variant, seed: (flops, accuracy, loss) of its operating points
    ("dense", 0): [(100.0, 0.80, 1.0)],
    ("dense_finetuned", 0): [(100.0, 0.75, 0.5)],
    ("ours", 0): [(50.0, 0.60, 2.0), (110.0, 0.80, 0.4)],
    ("dense", 1): [(100.0, 0.50, 4.0)],
    ("dense_finetuned", 1): [(100.0, 0.60, 5.0)],
    ("ours", 1): [(25.0, 0.60, 8.0)],
}


@pytest.fixture
def entries(tmp_path) -> list[dict]:
    """The tables of all points, and what they are of."""
    found = []
    for (variant, seed), points in POINTS.items():
        path = tmp_path / f"{variant}.{seed}.csv"
        rows = [
            {"knob": "none" if variant != "ours" else "dynamic_k", "knob_value": i, "flops": flops}
            | {"params": 7, "accuracy": accuracy, "loss": loss, "perplexity": math.exp(loss)}
            for i, (flops, accuracy, loss) in enumerate(points)
        ]
        write_rows(path, rows)
        found.append(
            {"path": path, "task": "t", "model": "m", "dataset": "d", "seed": seed}
            | {"method": "d2dmoe" if variant == "ours" else "dense", "variant": variant}
            | {"reference": variant != "ours"}
        )
    return found


def test_gathered_rows_carry_their_entrys_values_before_their_own(entries):
    rows = gather(entries)
    assert len(rows) == sum(map(len, POINTS.values()))
    labels = ["task", "model", "dataset", "seed", "method", "variant", "reference"]
    assert list(rows[0])[:7] == labels
    assert "path" not in rows[0] and rows[0]["flops"] == 100


@pytest.mark.parametrize("metrics", [("accuracy",), ("loss", "perplexity"), METRICS])
def test_every_point_has_a_row_of_each_metric_the_main_one_first(entries, metrics):
    rows = tradeoff(entries, metrics)
    points = gather(entries)
    assert [row["metric"] for row in rows] == list(metrics) * len(points)
    for row, point in zip(rows, [p for p in points for _ in metrics], strict=True):
        assert row["value"] == point[row["metric"]]
        assert set(TRADEOFF_COLUMNS) <= row.keys()
        assert all(row[key] == point[key] for key in ("variant", "seed", "knob_value", "flops"))


def relative(entries: list[dict], metric: str) -> list[float]:
    return [row["relative_value"] for row in tradeoff(entries, [metric])]


def test_quality_is_relative_to_the_better_dense_model_of_the_same_seed(entries):
    of_seed_0, of_seed_1 = [0.80, 0.75, 0.60, 0.80], [0.50, 0.60, 0.60]
    expected = [v / 0.80 for v in of_seed_0] + [v / 0.60 for v in of_seed_1]
    assert relative(entries, "accuracy") == pytest.approx(expected)
    assert relative(entries, "loss") == pytest.approx([0.5, 1, 0.25, 1.25, 1, 0.8, 0.5])


def test_a_dense_model_that_is_no_reference_is_relative_to_those_that_are(entries):
    """As a compressed one, which may be better or worse than the dense model."""
    of_dense = [entry | {"reference": entry["variant"] == "dense"} for entry in entries]
    of_seed_0, of_seed_1 = [0.80, 0.75, 0.60, 0.80], [0.50, 0.60, 0.60]
    expected = [v / 0.80 for v in of_seed_0] + [v / 0.50 for v in of_seed_1]
    assert relative(of_dense, "accuracy") == pytest.approx(expected)


def test_relative_perplexity_is_e_to_the_difference_of_losses(entries):
    losses, best = [1.0, 0.5, 2.0, 0.4, 4.0, 5.0, 8.0], [0.5] * 4 + [4.0] * 3
    expected = [math.exp(b - loss) for b, loss in zip(best, losses, strict=True)]
    assert relative(entries, "perplexity") == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
def test_higher_is_better_in_every_metric_and_the_best_dense_model_is_1(entries, metric):
    table = pd.DataFrame(tradeoff(entries, [metric]))
    dense = table[table["method"] == "dense"]
    assert dense.groupby("seed")["relative_value"].max().tolist() == [1, 1]
    ours = table[(table["method"] != "dense") & (table["seed"] == 0)]
    assert ours["relative_value"].is_monotonic_increasing  # the second point is better in all


def test_cost_is_relative_to_the_dense_model_of_the_same_seed(entries):
    ratios = [row["flops_ratio"] for row in tradeoff(entries, ["loss"])]
    assert ratios == [1, 1, 0.5, 1.1, 1, 1, 0.25]
