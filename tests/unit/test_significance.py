"""Laws of the statistics, on outcomes whose truth is known: made-up methods, samples and seeds."""

import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_outcomes import SAMPLES, Curve, entries, outcomes, save

from d2dmoe.bootstrap import Estimate, estimate, over_seeds, sample_counts, seed_weights, sums
from d2dmoe.errors import DataError
from d2dmoe.significance import statistics
from d2dmoe.tables import COMPARISON, SUMMARY

RESAMPLES = 25
DENSE: Curve = [(1.0, 0.9)]


def line(cheapest: float, loss: float, best: float = 0.9) -> Curve:
    """A curve from a cost on, which loses quality linearly with the cost."""
    return [(float(c), best - loss * (1 - float(c))) for c in np.linspace(cheapest, 1.0, 5)]


def tables(made: list, *pairs: tuple[str, str], metric: str = "accuracy", **options):
    summary, rows = statistics(made, metric, pairs, resamples=RESAMPLES, **options)
    assert all(row.keys() == set(SUMMARY) for row in summary)
    assert all(row.keys() == set(COMPARISON) for row in rows)
    return {row["variant"]: row for row in summary}, rows


def of(rows: list[dict], measure: str) -> list[dict]:
    return [row for row in rows if row["measure"] == measure]


def verdicts(rows: list[dict], measure: str = "quality") -> list[str]:
    return [row["verdict"] for row in of(rows, measure)]


# Resamples.


def test_the_first_resample_is_all_samples_and_seeds():
    assert (sample_counts(7, "test", 5)[0] == 1).all()
    assert seed_weights(3, 5)[0].tolist() == [1 / 3] * 3


def test_every_resample_has_as_many_samples_and_one_seed_less():
    assert (sample_counts(50, "test", 9).sum(1) == 50).all()
    weights = seed_weights(4, 30)[1:]
    assert weights.sum(1) == pytest.approx(1) and (weights * 3 % 1 < 1e-9).all()
    assert (seed_weights(1, 9) == 1).all()


def test_the_variance_of_a_mean_over_seeds_is_not_understated():
    values = np.array([1.0, 2.0, 4.0])
    means = over_seeds(np.tile(values, (20001, 1)))[1:]
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.05)


def test_the_same_split_gives_the_same_resamples_and_another_one_others():
    one, again, other = (sample_counts(40, s, 3) for s in ("test", "test", "validation"))
    assert (one == again).all() and (one[1:] != other[1:]).any()


def test_sums_count_a_sample_as_often_as_it_was_drawn():
    counts = np.array([[1, 1, 1], [0, 3, 0]], np.uint16)
    assert sums(counts, np.array([[1, 2, 4], [0, 1, 0]])).tolist() == [[7, 1], [6, 3]]


def test_an_interval_holds_95_percent_and_bears_infinities():
    found = estimate(np.concatenate([[50.0], np.arange(1, 1001)]))
    assert found == Estimate(50, 25, 976)
    mostly = np.concatenate([[1.0], np.ones(900), np.full(100, np.inf)])
    assert estimate(mostly) == Estimate(1, 1, math.inf)
    assert -Estimate(1, 0, 3) == Estimate(-1, -3, 0)


@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_intervals_hold_the_truth_about_as_often_as_they_say(seeds):
    """Means of 100 samples that all seeds share; a seed's chance is as large as theirs."""
    rng = np.random.default_rng(0)
    counts, held = sample_counts(100, "test", 200), 0
    for _ in range(200):
        samples = rng.normal(size=100) + rng.normal(size=(seeds, 100))
        values = samples + (rng.normal(size=(seeds, 1)) / 10 if seeds > 1 else 0)
        found = estimate(over_seeds(sums(counts, values) / 100))
        held += found.low <= 0 <= found.high
    assert 0.9 <= held / 200 <= 0.995


# Verdicts of one comparison.


@pytest.fixture
def made(tmp_path):
    curves = {
        "dense": DENSE,
        "good": line(0.4, 0.1),
        "bad": line(0.4, 0.4),
        "dear": line(0.72, 0.1),
    }
    return entries(tmp_path, curves)


def test_a_better_curve_is_better_and_the_other_one_worse(made):
    _, rows = tables(made, ("good", "bad"), ("bad", "good"))
    half = len(rows) // 2
    assert verdicts(rows[:half]) == ["better"] * 4 and verdicts(rows[half:]) == ["worse"] * 4
    for measure in ("mean quality", "cost"):
        assert verdicts(rows[:half], measure)[0] == "better"
        assert verdicts(rows[half:], measure)[0] == "worse"
    for one, other in zip(rows[:half], rows[half:], strict=True):
        flipped = (-other["difference"], -other["high"], -other["low"])
        assert (one["difference"], one["low"], one["high"]) == pytest.approx(flipped)


def test_the_difference_is_that_of_the_curves(made):
    _, rows = tables(made, ("good", "bad"))
    gaps = {row["at"]: row["difference"] for row in of(rows, "quality")}
    assert gaps == pytest.approx({b: 0.3 * (1 - b) / 0.9 for b in (0.5, 0.6, 0.7, 0.8)}, abs=0.01)
    (mean,) = of(rows, "mean quality")
    assert mean["difference"] == pytest.approx(0.3 * 0.3 / 0.9, abs=0.01) and mean["at"] == 0.4


def test_the_same_outcomes_are_a_tie_without_doubt(tmp_path):
    """Pairing leaves no chance, though the methods' own intervals are wide."""
    made = entries(tmp_path, {"dense": DENSE, "a": line(0.4, 0.2), "b": line(0.4, 0.2)})
    summary, rows = tables(made, ("a", "b"))
    assert {row["verdict"] for row in rows} == {"undecided"}
    assert all(row["low"] == row["difference"] == row["high"] == 0 for row in rows)
    assert summary["a"]["quality_at_0.5_low"] < summary["a"]["quality_at_0.5_high"]


def test_a_difference_within_chance_is_undecided(tmp_path):
    """One sample of 400 more, but different ones are right."""
    made = entries(tmp_path, {"dense": DENSE, "a": line(0.4, 0.2)})
    other = outcomes(line(0.4, 0.2, best=0.9025), shift=0.5)
    made.append(save(tmp_path, "b", 0, validation=other, test=other))
    _, rows = tables(made, ("b", "a"))
    assert verdicts(rows) == ["undecided"] * 4
    assert all(row["low"] < 0 < row["high"] for row in of(rows, "quality"))


def test_curves_are_compared_at_budgets_that_both_can_meet(made):
    _, rows = tables(made, ("good", "dear"))
    assert [row["at"] for row in of(rows, "quality")] == [0.8]
    (mean,) = of(rows, "mean quality")
    assert mean["at"] == pytest.approx(0.72) and mean["difference"] == pytest.approx(0, abs=0.005)


def test_where_no_budget_is_met_curves_are_compared_on_their_common_range(tmp_path):
    made = entries(tmp_path, {"dense": DENSE, "a": line(0.4, 0.1), "b": line(0.88, 0.9)})
    _, rows = tables(made, ("a", "b"))
    assert [row["at"] for row in of(rows, "quality")] == pytest.approx([0.88, 0.92, 0.96, 1.0])


def test_curves_without_a_common_cost_are_not_compared(tmp_path):
    made = entries(tmp_path, {"dense": DENSE, "a": line(0.9, 0.1), "b": [(0.1, 0.5), (0.2, 0.6)]})
    _, rows = tables(made, ("a", "b"))
    assert not of(rows, "quality") and not of(rows, "mean quality")
    assert verdicts(rows, "cost") == ["not reached"] * 2


def test_one_point_each_is_compared_where_both_are_met(tmp_path):
    made = entries(tmp_path, {"dense": DENSE, "a": [(0.6, 0.85)], "b": [(0.7, 0.6)]})
    _, rows = tables(made, ("a", "b"))
    assert [row["at"] for row in of(rows, "quality")] == [0.7, 0.8]
    assert verdicts(rows) == ["better"] * 2 and not of(rows, "mean quality")


# Cost at 99 %, chosen on validation samples.


def test_the_cost_at_99_percent_is_where_the_curve_keeps_them(made):
    summary, _ = tables(made)
    found = summary["good"]
    assert found["flops_ratio_at_99"] == pytest.approx(0.91, abs=0.02)  # 0.1 (1 - c) = 0.009
    assert found["flops_ratio_at_99_low"] <= found["flops_ratio_at_99"]
    assert found["flops_ratio_at_99"] <= found["flops_ratio_at_99_high"]
    assert found["quality_at_99"] == pytest.approx(0.99, abs=0.003)
    assert summary["dense"]["flops_ratio_at_99"] == 1
    assert math.isnan(found["quality_at_0.3"]) and found["quality_at_0.4"] > 0.9


def test_the_point_is_chosen_by_validation_and_told_by_test_samples(tmp_path):
    """The test samples would keep 99 % at a lower cost: the choice may not know that."""
    dense = outcomes(DENSE)
    validation, test = outcomes(line(0.4, 0.1)), outcomes(line(0.4, 0.02))
    made = [save(tmp_path, "dense", 0, validation=dense, test=dense)]
    made.append(save(tmp_path, "a", 0, validation=validation, test=test))
    found = tables(made)[0]["a"]
    assert found["flops_ratio_at_99"] == pytest.approx(0.91, abs=0.02)
    assert found["quality_at_99"] > 0.995


def test_the_cost_is_that_of_the_test_samples(tmp_path):
    dense, validation = outcomes(DENSE), outcomes(line(0.4, 0.1))
    test = dict(validation, flops=validation["flops"] * 0.9)
    made = [save(tmp_path, "dense", 0, validation=dense, test=dense)]
    made.append(save(tmp_path, "a", 0, validation=validation, test=test))
    assert tables(made)[0]["a"]["flops_ratio_at_99"] == pytest.approx(0.9 * 0.91, abs=0.02)


def two_seeds(tmp_path, second: Curve) -> list:
    """Entries of a dense model and of `a`, whose first seed loses little."""
    made = entries(tmp_path, {"dense": DENSE, "a": line(0.4, 0.1)}, seeds=(0, 1))
    found = outcomes(second)
    return [*made[:-1], save(tmp_path, "a", 1, validation=found, test=found)]


def test_what_the_mean_of_the_seeds_does_not_keep_is_no_number(tmp_path):
    made = two_seeds(tmp_path, line(0.4, 0.1, best=0.8))
    summary, rows = tables(made, ("a", "dense"))
    assert math.isnan(summary["a"]["flops_ratio_at_99"])
    assert math.isnan(summary["a"]["flops_ratio_at_99_low"])
    assert verdicts(rows, "cost") == ["not reached"] * 2
    assert summary["a"]["quality_at_99"] == pytest.approx((1 + 0.8 / 0.9) / 2, abs=0.01)


def test_one_seed_that_misses_99_percent_takes_no_number_away(tmp_path):
    """It keeps 98.7 % at any cost; the other one 99.3 % where it pays for 0.94: then the mean keeps
    99 %."""
    made = two_seeds(tmp_path, [(0.4, 0.888), (1.0, 0.888)])
    found = tables(made)[0]["a"]
    assert found["flops_ratio_at_99"] == pytest.approx(0.94, abs=0.02)
    assert found["quality_at_99"] == pytest.approx(0.99, abs=0.003)


def test_what_resamples_may_not_reach_has_no_upper_end(tmp_path):
    """Just 99 % of the dense quality, by other samples than the dense model's."""
    made = entries(tmp_path, {"dense": DENSE})
    close = outcomes(line(0.4, 0.1, best=0.895), shift=0.3)
    made.append(save(tmp_path, "a", 0, validation=close, test=close))
    found = tables(made)[0]["a"]
    assert found["flops_ratio_at_99"] <= 1 and math.isnan(found["flops_ratio_at_99_high"])


# References, metrics and seeds.


def test_quality_is_relative_to_the_better_dense_model_and_cost_to_the_first(tmp_path):
    dense, tuned = [(1.0, 0.8)], [(1.0, 0.9)]
    made = entries(tmp_path, {"dense": dense, "dense_finetuned": tuned, "a": [(0.5, 0.45)]})
    summary, _ = tables(made)
    assert summary["a"]["quality_at_0.5"] == pytest.approx(0.5, abs=0.005)
    assert (
        summary["dense"]["quality_at_0.9"] != summary["dense"]["quality_at_0.9"]
    )  # below its cost


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_less_of_a_loss_is_better(made, metric):
    summary, rows = tables(made, ("good", "bad"), metric=metric)
    assert verdicts(rows) == ["better"] * 4
    dense, at_half = 2 - 0.9, 2 - (0.9 - 0.05)
    expected = dense / at_half if metric == "loss" else math.exp(dense - at_half)
    assert summary["good"]["quality_at_0.5"] == pytest.approx(expected, abs=0.003)


def test_a_loss_is_the_mean_over_targets_not_samples(tmp_path):
    dense, own = outcomes(DENSE, 2), outcomes([(0.5, 0.9)], 2)
    for found in (dense, own):
        found["targets"] = np.array([1, 3], np.int32)
    own["loss"] = np.array([[1.0, 9.0]], np.float32)  # 10 / 4
    dense["loss"] = np.array([[2.0, 3.0]], np.float32)  # 5 / 4
    made = [save(tmp_path, n, 0, validation=x, test=x) for n, x in (("dense", dense), ("a", own))]
    assert tables(made, metric="loss")[0]["a"]["quality_at_0.5"] == pytest.approx(0.5)


def test_each_seed_is_relative_to_its_own_dense_model(tmp_path):
    made = []
    for seed, best in enumerate((0.9, 0.6)):
        for name, curve in {"dense": [(1.0, best)], "a": [(0.5, best / 2)]}.items():
            found = outcomes(curve)
            made.append(save(tmp_path, name, seed, validation=found, test=found))
    found = tables(made)[0]["a"]
    assert found["quality_at_0.5"] == pytest.approx(0.5, abs=0.01) and found["seeds"] == 2


def test_seeds_that_differ_widen_the_interval(tmp_path):
    """Of one seed only the samples are drawn."""
    made = entries(tmp_path, {"dense": DENSE, "a": [(0.5, 0.8)]}, seeds=(0, 1, 2))
    alike = tables(made)[0]["a"]
    for seed, quality in enumerate((0.7, 0.8, 0.9)):
        found = outcomes([(0.5, quality)])
        made[3 + seed] = save(tmp_path, "a", seed, validation=found, test=found)
    apart = tables(made)[0]["a"]
    widths = [x["quality_at_0.5_high"] - x["quality_at_0.5_low"] for x in (alike, apart)]
    assert widths[1] > 2 * widths[0]
    assert apart["quality_at_0.5"] == pytest.approx(alike["quality_at_0.5"], abs=0.01)


def test_variants_are_compared_by_the_seeds_that_both_have(tmp_path):
    curves = {"dense": DENSE, "a": line(0.4, 0.1), "b": line(0.4, 0.4)}
    made = entries(tmp_path, curves, seeds=(0, 1, 2))
    fewer = [e for e in made if (e["variant"], e["seed"]) != ("b", 1)]
    assert {row["seeds"] for row in tables(fewer, ("a", "b"))[1]} == {2}
    apart = [e for e in made if (e["variant"], e["seed"]) in {("a", 0), ("b", 1)} or e["reference"]]
    assert tables(apart, ("a", "b"))[1] == []


def test_a_seed_without_a_dense_model_is_named(tmp_path):
    made = entries(tmp_path, {"dense": DENSE, "a": line(0.4, 0.1)}, seeds=(0, 1))
    alone = [e for e in made if (e["variant"], e["seed"]) != ("dense", 1)]
    with pytest.raises(DataError, match="a, seed 1: no outcomes of dense"):
        tables(alone)


def test_trainings_with_a_point_each_are_one_curve(tmp_path):
    one, other = outcomes([(0.4, 0.6)]), outcomes([(0.8, 0.9)])
    made = entries(tmp_path, {"dense": DENSE})
    for index, found in enumerate((one, other)):
        folder = tmp_path / str(index)
        folder.mkdir()
        made.append(save(folder, "a", 0, validation=found, test=found))
    found = tables(made)[0]["a"]
    assert found["quality_at_0.4"] == pytest.approx(0.6 / 0.9, abs=0.01)
    assert found["quality_at_0.8"] == pytest.approx(1, abs=0.01)


def test_a_conversion_of_a_compressed_model_is_relative_to_that_model(tmp_path):
    curves = {"dense": DENSE, "pruned": [(0.5, 0.7)], "pruned_finetuned": [(0.5, 0.8)]}
    made = entries(tmp_path, curves | {"converted": [(0.3, 0.8), (0.52, 0.8)]})
    bases = {"pruned": {"converted": "converted", "references": ["pruned", "pruned_finetuned"]}}
    _, rows = tables(made, bases=bases)
    found = {row["measure"]: row for row in rows}
    assert found["saved"]["difference"] == pytest.approx(0.4, abs=0.01)
    assert found["kept"]["difference"] == pytest.approx(0.01, abs=1e-3)
    assert {row["rival"] for row in rows} == {"pruned"}


# Damage.


@pytest.mark.parametrize(("name", "value"), [("loss", math.nan), ("flops", math.inf)])
def test_outcomes_that_are_no_numbers_are_refused_by_name(made, name, value):
    path = made[1]["test"]
    found = load_file(path)
    found[name][2, 5] = value
    save_file(found, path)
    with pytest.raises(DataError, match=f"good-0-test.*the {name} of sample 5 .* point 2 .* is "):
        tables(made)


def test_outcomes_of_other_samples_are_refused_by_name(made, tmp_path):
    found = outcomes(line(0.4, 0.1), samples=SAMPLES - 1)
    made[2] = save(tmp_path, "bad", 0, validation=found, test=found)
    with pytest.raises(DataError, match="bad-0-validation.* has 399 samples, the others .* 400"):
        tables(made)


@pytest.mark.parametrize("missing", ["correct", "targets"])
def test_a_file_without_outcomes_is_refused(made, missing):
    path = made[1]["test"]
    save_file({k: v for k, v in load_file(path).items() if k != missing}, path)
    with pytest.raises(DataError, match="holds no outcomes of samples"):
        tables(made)


def test_resamples_in_which_nothing_is_right_bring_no_error(tmp_path):
    """Of four samples, one in 250 draws only the wrong one."""
    curves = {"dense": DENSE, "a": line(0.4, 0.1)}
    found = tables(entries(tmp_path, curves, samples=4))[0]["a"]
    assert np.isfinite([found[f"quality_at_0.5{end}"] for end in ("", "_low", "_high")]).all()


def test_a_model_that_is_never_right_relates_to_nothing(tmp_path):
    made = entries(tmp_path, {"dense": [(1.0, 0.0)], "a": [(0.5, 0.5)]})
    with pytest.raises(DataError, match="accuracy 0 of dense on .*nothing is relative to 0"):
        tables(made)
