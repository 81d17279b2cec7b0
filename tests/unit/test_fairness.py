"""Laws of what every method was given: steps as trained, wall time of all, the best rate tried."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from d2dmoe.config.training import TrainingConfig
from d2dmoe.fairness import TRIAL_BUDGETS, fairness, quality_at, tuning, wall_times
from d2dmoe.io.csvfile import write_rows
from d2dmoe.jobs.record import save_record

SAMPLES = 100
STAGES = [("sparsify", 1.5, 8), ("clustering", 0.0, 1), ("router", 0.25, 4)]  # stage, epochs, batch
WALLS = {"sparsify": 10.0, "clustering": 1.0, "router": 2.0}  # seconds


@pytest.fixture
def about(tmp_path) -> Path:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"sizes": {"train": SAMPLES, "validation": 7}}))
    return path


@pytest.fixture
def entry(tmp_path, about):
    """Makes an entry of one training, whose jobs took `factor` times as long as `WALLS`."""
    made = []

    def make(variant: str = "ours", seed: int = 0, factor: float = 1.0, **changes) -> dict:
        stages, records = [], []
        for stage, epochs, batch_size in changes.pop("stages", STAGES):
            records.append(str(tmp_path / f"{len(made)}.json"))
            made.append(records[-1])
            save_record(Path(records[-1]), stage, "code", [{"s": factor * WALLS[stage]}])
            stages.append({"stage": stage, "epochs": epochs, "batch_size": batch_size})
        entry = {"task": "t", "method": "d2dmoe", "variant": variant, "seed": seed, "lr": 0.001}
        entry |= {"rates": [0.0005, 0.001], "about": str(about), "stages": stages}
        entry |= {"records": records}
        return entry | changes

    return make


def test_a_training_has_the_steps_epochs_and_samples_of_its_stages_together(entry):
    (row,) = fairness([entry()])
    steps = {  # those that the training loop makes
        stage: TrainingConfig(epochs=epochs, lr=1.0, batch_size=size).steps(SAMPLES)
        for stage, epochs, size in STAGES
    }
    assert steps == {"sparsify": 18, "clustering": 0, "router": 6}
    assert row["stages"] == "sparsify:18 router:6"  # what is not trained is not listed
    assert row["steps"] == 24 and row["epochs"] == 1.75
    assert row["samples"] == 18 * 8 + 6 * 4
    assert (row["lr"], row["rates_tried"]) == (0.001, "0.0005 0.001")
    assert (row["seeds"], row["trainings"]) == (1, 1)


def test_a_row_says_what_it_is_of_in_the_order_of_the_entries(entry):
    entries = [entry("b"), entry("a", method="ztw"), entry("b", seed=1), entry("b", task="u")]
    rows = fairness(entries)
    keys = [(row["task"], row["method"], row["variant"]) for row in rows]
    assert keys == [("t", "d2dmoe", "b"), ("t", "ztw", "a"), ("u", "d2dmoe", "b")]
    assert [row["seeds"] for row in rows] == [2, 1, 1]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert "seed" not in rows[0] and not any("wall" in key for key in rows[0])
    times = wall_times(entries)
    assert [{key: row[key] for key in rows[0].keys() & times[0].keys()} for row in times] == [
        {key: row[key] for key in rows[0].keys() & times[0].keys()} for row in rows
    ]


@pytest.mark.parametrize("factors", [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (3.0, 1.0, 2.0)])
def test_wall_time_is_the_mean_and_deviation_over_seeds(entry, factors):
    (row,) = wall_times([entry(seed=seed, factor=f) for seed, f in enumerate(factors)])
    walls = pd.Series([13.0 * factor for factor in factors])
    assert row["seeds"] == len(factors)
    assert row["wall_s_mean"] == round(walls.mean(), 1)
    assert row["wall_s_std"] == round(walls.std(), 1)


def test_one_seed_has_no_deviation(entry):
    (row,) = wall_times([entry()])
    assert row["wall_s_mean"] == 13.0 and math.isnan(row["wall_s_std"])


def test_a_training_for_every_operating_point_counts_in_wall_time_but_not_in_steps(entry):
    single = [entry()]
    several = [entry(seed=seed, factor=f) for seed in (0, 1) for f in (1.0, 2.0, 3.0)]
    (one,), (row,) = fairness(single), fairness(several)
    assert row["trainings"] == 3 and row["seeds"] == 2
    assert (row["steps"], row["samples"]) == (one["steps"], one["samples"])
    (one,), (row,) = wall_times(single), wall_times(several)
    assert row["wall_s_mean"] == 6 * one["wall_s_mean"] and row["wall_s_std"] == 0
    assert (one["jobs"], row["jobs"], row["attempts"]) == (3, 18, 18)


def test_of_seeds_with_unequal_trainings_the_most_are_told(entry):
    (row,) = wall_times([entry(seed=0), entry(seed=1), entry(seed=1)])
    assert row["trainings"] == 2
    assert row["wall_s_mean"] == 1.5 * 13 and row["wall_s_std"] == round(13 / math.sqrt(2), 1)


def test_all_attempts_at_a_job_count(entry):
    killed = entry()
    save_record(Path(killed["records"][0]), "sparsify", "code", [{"s": 99.0}, {"s": 4.0}])
    (row,) = wall_times([killed])
    assert row["wall_s_mean"] == 99.0 + 4.0 + 1.0 + 2.0
    assert (row["jobs"], row["attempts"]) == (3, 4)


@pytest.mark.parametrize(
    ("epochs", "batch_size", "steps"), [(0.001, 8, 1), (1.0, 1000, 1), (0.0, 8, 0), (2.0, 33, 6)]
)
def test_steps_are_those_of_the_training_loop(entry, epochs, batch_size, steps):
    (row,) = fairness([entry(stages=[("router", epochs, batch_size)])])
    assert row["steps"] == steps and row["samples"] == steps * batch_size
    assert row["stages"] == (f"router:{steps}" if steps else "")


def test_the_same_passes_in_larger_batches_are_fewer_steps_of_as_many_samples(entry):
    small, large = (fairness([entry(stages=[("router", 2.0, b)])])[0] for b in (10, 50))
    assert small["epochs"] == large["epochs"] and small["samples"] == large["samples"] == 200
    assert (small["steps"], large["steps"]) == (20, 4)


Point = tuple[float, float]  # flops, accuracy
CURVES: dict[tuple[str, float], list[Point]] = {  # of a dense model of 100 FLOPs, accuracy 0.8
    ("sparse", 0.001): [(40.0, 0.4), (100.0, 0.8)],
    ("sparse", 0.003): [(40.0, 0.6), (100.0, 0.72)],
    ("late", 0.001): [(75.0, 0.7), (100.0, 0.8)],
    ("late", 0.003): [(65.0, 0.8), (100.0, 0.8)],
    ("dense_finetuned", 0.001): [(100.0, 0.7)],
    ("dense_finetuned", 0.003): [(100.0, 0.76)],
}
CHOSEN = {"sparse": 0.001, "late": 0.003, "dense_finetuned": 0.003}


@pytest.fixture
def trials(tmp_path):
    """Makes the entries of trials, each a file; the curves are `scale` as accurate in seed 1."""

    def make(curves: dict = CURVES, chosen: dict = CHOSEN, scale: float = 1.0) -> list[dict]:
        entries: list[dict[str, Any]] = []
        for seed in (0, 1):
            for (variant, lr), points in ({("dense", 0.0): [(100.0, 0.8)]} | curves).items():
                path = tmp_path / f"{variant}.{lr}.{seed}.csv"
                factor = scale if seed and variant not in ("dense", "dense_finetuned") else 1.0
                rows = [
                    {"knob": "dynamic_k", "knob_value": i, "flops": flops, "params": 7}
                    | {"accuracy": factor * accuracy}
                    for i, (flops, accuracy) in enumerate(points)
                ]
                write_rows(path, rows)
                method = "dense" if variant.startswith("dense") else "d2dmoe"
                own = {"task": "t", "model": "m", "dataset": "d", "method": method}
                own |= {"variant": variant, "seed": seed, "lr": lr, "path": str(path)}
                own |= {"reference": method == "dense"}
                entries.append(own | {"chosen": chosen.get(variant) == lr})
        return entries

    return make


def by_rate(rows: list[dict]) -> dict[tuple[str, float], dict]:
    return {(row["variant"], row["lr"]): row for row in rows}


def test_every_rate_of_every_variant_has_a_row_and_the_dense_model_none(trials):
    rows = tuning(trials(), "accuracy")
    assert list(by_rate(rows)) == list(CURVES)
    keys = ["task", "method", "variant", "lr", "chosen", "metric", "seeds"]
    qualities = [f"quality_at_{ratio}" for ratio in [*TRIAL_BUDGETS, "dearest"]]
    assert all(list(row) == [*keys, *qualities, "score", "best"] for row in rows)
    assert {row["seeds"] for row in rows} == {2} and {row["metric"] for row in rows} == {"accuracy"}


def test_the_best_and_the_chosen_rate_of_a_variant_may_differ_and_may_agree(trials):
    rows = by_rate(tuning(trials(), "accuracy"))
    chosen = {key for key, row in rows.items() if row["chosen"]}
    best = {key for key, row in rows.items() if row["best"]}
    assert chosen == set(CHOSEN.items())
    assert best == {("sparse", 0.003), ("late", 0.003), ("dense_finetuned", 0.003)}


def test_each_variant_has_its_own_best_however_bad_beside_others(trials):
    worse = {key: [(f, 0.1 * a) for f, a in x] for key, x in CURVES.items() if key[0] == "sparse"}
    rows = tuning(trials(CURVES | worse), "accuracy")
    best = {row["variant"]: row["lr"] for row in rows if row["best"]}
    assert best == {"sparse": 0.003, "late": 0.003, "dense_finetuned": 0.003}


def test_the_score_is_the_mean_quality_at_the_budgets(trials):
    row = by_rate(tuning(trials(), "accuracy"))["sparse", 0.001]
    curve = pd.DataFrame({"flops_ratio": [0.4, 1.0], "relative_value": [0.5, 1.0]})
    expected = [quality_at(curve, ratio) for ratio in TRIAL_BUDGETS]
    assert [row[f"quality_at_{ratio}"] for ratio in TRIAL_BUDGETS] == pytest.approx(expected)
    assert row["score"] == pytest.approx(sum(expected) / len(TRIAL_BUDGETS))
    assert row["quality_at_dearest"] == 1


def test_rates_are_compared_at_the_budgets_that_all_of_them_meet(trials):
    """Else the rate that reaches a small budget, where quality is low, would seem the worse one."""
    rows = by_rate(tuning(trials(), "accuracy"))
    late, earlier = rows["late", 0.001], rows["late", 0.003]
    assert math.isnan(late["quality_at_0.6"]) and math.isnan(late["quality_at_0.7"])
    assert math.isnan(earlier["quality_at_0.6"]) and earlier["quality_at_0.7"] == 1
    for row in (late, earlier):
        shared = [row[f"quality_at_{ratio}"] for ratio in (0.8, 0.9, 1.0)]
        assert row["score"] == pytest.approx(sum(shared) / 3)


def test_a_budget_that_one_seed_misses_is_not_compared(trials):
    entries = trials({("late", rate): CURVES["sparse", 0.001] for rate in (0.001, 0.003)})
    for entry in entries:
        if (entry["variant"], entry["lr"], entry["seed"]) == ("late", 0.001, 1):
            rows = pd.read_csv(entry["path"]).assign(flops=[65.0, 100.0]).to_dict("records")
            write_rows(Path(entry["path"]), rows)
    row = by_rate(tuning(entries, "accuracy"))["late", 0.003]
    shared = [row[f"quality_at_{ratio}"] for ratio in (0.7, 0.8, 0.9, 1.0)]
    assert row["score"] == pytest.approx(sum(shared) / 4) and row["quality_at_0.6"] > 0


def test_a_variant_that_meets_no_budget_is_scored_by_its_dearest_point(trials):
    """As the dense model, which has one cost."""
    dear = {("late", 0.001): [(110.0, 0.8), (120.0, 0.6)], ("late", 0.003): [(110.0, 0.7)]}
    rows = by_rate(tuning(trials(CURVES | dear), "accuracy"))
    assert rows["dense_finetuned", 0.003]["score"] == pytest.approx(0.76 / 0.8)
    assert rows["dense_finetuned", 0.001]["score"] == pytest.approx(0.70 / 0.8)
    assert rows["late", 0.001]["score"] == pytest.approx(0.75) and not rows["late", 0.001]["best"]
    assert rows["late", 0.003]["score"] == pytest.approx(0.875) and rows["late", 0.003]["best"]


def test_quality_is_relative_to_the_best_dense_model_at_any_rate(trials):
    better = CURVES | {("dense_finetuned", 0.003): [(100.0, 0.9)]}
    rows = by_rate(tuning(trials(better), "accuracy"))
    before = by_rate(tuning(trials(), "accuracy"))
    for key in (("sparse", 0.001), ("late", 0.003)):
        assert rows[key]["score"] == pytest.approx(before[key]["score"] * 0.8 / 0.9)
    assert rows["dense_finetuned", 0.003]["score"] == 1


def test_measures_are_means_over_seeds(trials):
    rows, halved = (by_rate(tuning(trials(scale=s), "accuracy")) for s in (1.0, 0.5))
    for key in (("sparse", 0.001), ("late", 0.003)):
        assert halved[key]["score"] == pytest.approx(0.75 * rows[key]["score"])
    sparse = halved["sparse", 0.001]["quality_at_0.7"]
    assert sparse == pytest.approx(0.75 * rows["sparse", 0.001]["quality_at_0.7"])


def test_a_variant_with_several_trainings_is_one_curve(trials):
    """A-ViT has a training, and so a table, for every operating point."""
    whole = by_rate(tuning(trials(), "accuracy"))["sparse", 0.001]
    entries = []
    for entry in trials():
        if (entry["variant"], entry["lr"]) != ("sparse", 0.001):
            entries.append(entry)
            continue
        for i, row in enumerate(pd.read_csv(entry["path"]).to_dict("records")):
            path = entry["path"].replace(".csv", f".{i}.csv")
            write_rows(Path(path), [row])
            entries.append(entry | {"path": path})
    assert by_rate(tuning(entries, "accuracy"))["sparse", 0.001] == whole
