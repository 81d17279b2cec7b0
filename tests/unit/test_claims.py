"""Laws of the ledger of claims: verdicts follow from the tables, and what was not run is said."""

from collections.abc import Iterator
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from d2dmoe.claims import CLAIMS
from d2dmoe.claims.evidence import Evidence, evidence_of
from d2dmoe.claims.findings import CONTRADICTED, NOT_TESTED, SUPPORTED, UNDECIDED, Finding
from d2dmoe.claims.ledger import COLUMNS, ledger, wall_clock_ledger
from d2dmoe.config.figures import FiguresConfig
from d2dmoe.figures import by_key
from d2dmoe.lookup import resolve
from d2dmoe.methods import METHODS
from d2dmoe.tables import BUDGETS, COMPARISON, RATIOS, SUMMARY

SHARES = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]  # executed experts at each operating point
D_FF = 100
VARIANTS = {  # method, knob, quality lost without FFNs, active neurons, experts
    "sparse": ("d2dmoe", "dynamic_k", 0.005, [10, 30], 8),
    "denser": ("d2dmoe", "dynamic_k", 0.1, [60, 70], 8),
    "poor": ("d2dmoe", "dynamic_k", 0.5, [5, 6], 8),
    "larger": ("d2dmoe", "dynamic_k", 0.1, [10, 30], 4),
    "static": ("d2dmoe", "top_k", 0.1, [10, 30], 8),
    "moefication": ("moefication", "top_k", 0.2, [60, 70], 8),
    "hopeless": ("d2dmoe", "dynamic_k", 0.3, [10, 30], 8),
    "worse": ("d2dmoe", "dynamic_k", 0.3, [10, 30], 8),
    "exits": ("ztw", "confidence", 0.15, [], 0),
    "strong_exits": ("ztw", "confidence", -0.05, [], 0),
    "close_exits": ("ztw", "confidence", 0.004, [], 0),
    "similar": ("d2dmoe", "dynamic_k", 0.005, [55, 65], 8),  # to denser, in its sparsity
    "alike": ("d2dmoe", "top_k", 0.005, [10, 30], 4),  # to sparse, in its quality
    "halting": ("avit", "depth", 0.3, [], 0),
    "classified": ("d2dmoe", "dynamic_k", 0.2, [10, 30], 8),
    "attention": ("d2dmoe", "dynamic_k", 0.005, [10, 30], 8),
    "poor_attention": ("d2dmoe", "dynamic_k", 0.6, [10, 30], 8),
    "thresholds": ("chess", "density", 0.1, [], 0),
    "one_threshold": ("cats", "density", 0.2, [], 0),
    "other_thresholds": ("chess", "density", 0.4, [], 0),
    "good_threshold": ("cats", "density", 0.005, [], 0),
    "even_threshold": ("cats", "density", 0.01 / 0.35, [], 0),  # 99 % at half of the channels
    "inputs": ("teal", "density", 0.005, [], 0),
    "poor_inputs": ("teal", "density", 0.5, [], 0),
    "carved": ("cmoe", "top_k", 0.01, [], 8),
    "poor_carved": ("cmoe", "top_k", 0.4, [], 8),
    "factors": ("factorllm", "factors", 0.2, [], 4),
    "even_factors": ("factorllm", "factors", 0.5, [], 4),  # 85 % at 0.7 of the cost
    "poor_factors": ("factorllm", "factors", 0.6, [], 4),
    "fewer": ("seer", "active", 0.005, [], 6),
    "as_many": ("seer", "active", 0.005, [], 8),
    "adapted": ("dyn_adapter", "confidence", 0.005, [], 0),
    "poor_adapted": ("dyn_adapter", "confidence", 0.2, [], 0),
    "gated": ("adapmoe", "sensitivity", 0.01 / 0.5, [], 8),  # 99 % at half of the cost
    "even_gated": ("adapmoe", "sensitivity", 0.01 / 0.25, [], 8),  # at a quarter less than static
    "poor_gated": ("adapmoe", "sensitivity", 0.09, [], 8),
    "inside": ("sam", "grouped", 0.005, [], 8),
    "poor_inside": ("sam", "grouped", 0.3, [], 8),
    "removed": ("ldpruner", "none", 0.005, [], 0),
    "even_removed": ("ldpruner", "none", 0.01 / 0.349, [], 0),
    "poor_removed": ("ldpruner", "none", 0.2, [], 0),
}
FLOORS = {
    "attention": 0.1,
    "poor_attention": 0.1,
}  # of the cost; the other variants' is a parameter
PROJECTIONS = list(FLOORS)


SEEDS = (0, 1)
CHANCE = 0.002  # of the quality: half the width of an interval
COST_CHANCE = 0.01  # of the cost at 99 %


@cache
def _tables(
    metric: str = "accuracy", floor: float = 0.3, task: str = "t", full: float = 1.0, seeds=SEEDS
) -> dict[str, pd.DataFrame]:
    """Tables of curves that fall linearly with the cost, from `full` of the dense quality."""
    points, layers, activity = [], [], []
    for variant, (method, rule, loss, active, experts) in VARIANTS.items():
        for seed in seeds:
            of = {"task": task, "variant": variant, "seed": seed}
            left = FLOORS.get(variant, floor)
            for share in SHARES:
                ratio = left + (1 - left) * share
                best = {"hopeless": 0.98, "worse": 0.9}.get(variant, full)
                quality = {"relative_value": best - loss * (1 - ratio), "flops_ratio": ratio}
                knob = {"knob": rule, "knob_value": share}
                points.append(of | knob | quality | {"method": method, "metric": metric})
                for layer, part in enumerate((0.8, 1.2) if experts else ()):
                    row = {"layer": layer, "num_experts": experts, "role": "ffn"}
                    layers.append(of | knob | row | {"experts": share * part * experts})
            activity += [of | {"layer": 0, "active": a, "d_ff": D_FF, "tokens": 5} for a in active]
    frames = {"tradeoff": points, "layers": layers, "activity": activity}
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def tables(**options: Any) -> dict[str, pd.DataFrame]:
    """As `_tables`, which a test may change."""
    return {name: table.copy() for name, table in _tables(**options).items()}


def statistics(tradeoff: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The summary and the comparisons of these curves, with intervals of known width."""
    summary, comparisons = [], []
    for (task, metric), rows in tradeoff.groupby(["task", "metric"]):
        curves = {name: _curve(points) for name, points in rows.groupby("variant", sort=False)}
        for name, curve in curves.items():
            cost, best = _cost_at_99(curve), curve[1].max()
            kept = max(0.99, curve[1].min()) if cost is not None else best
            row = {"task": task, "metric": metric, "variant": name}
            row |= _cells("flops_ratio_at_99", cost, COST_CHANCE)
            row |= _cells("quality_at_99", kept, CHANCE)
            for ratio in RATIOS:
                met = ratio >= curve[0][0]
                quality = float(np.interp(ratio, *curve)) if met else None
                row |= _cells(f"quality_at_{ratio}", quality, CHANCE)
            summary.append(row)
        for one, other in permutations(curves, 2):
            of = {"task": task, "metric": metric, "variant": one, "rival": other}
            for measure, at, difference, chance in _differences(curves[one], curves[other]):
                row = of | {"measure": measure, "at": at, "difference": difference}
                comparisons.append(row | {"low": difference - chance, "high": difference + chance})
    return {
        "summary": pd.DataFrame(summary, columns=SUMMARY),
        "comparisons": pd.DataFrame(comparisons, columns=COMPARISON),
    }


def _curve(points: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    known = points[points["knob_value"].notna()]
    _, at, counts = np.unique(known["knob_value"], return_inverse=True, return_counts=True)
    costs, qualities = (
        np.bincount(at, known[name]) / counts for name in ("flops_ratio", "relative_value")
    )
    order = costs.argsort()
    return costs[order], qualities[order]


def _cost_at_99(curve: tuple[np.ndarray, np.ndarray]) -> float | None:
    costs, qualities = curve
    kept = costs[qualities >= 0.99 - 1e-9]
    if not len(kept):
        return None
    return float(kept[0] if kept[0] == costs[0] else np.interp(0.99, qualities, costs))


def _cells(name: str, value: float | None, chance: float) -> dict[str, float]:
    found = np.nan if value is None else value
    return {name: found, f"{name}_low": found - chance, f"{name}_high": found + chance}


def _differences(one, other) -> Iterator[tuple[str, float, float, float]]:
    low, high = max(one[0][0], other[0][0]), min(one[0][-1], other[0][-1])
    own = np.linspace(low, high, 4) if low < high else ()
    budgets = [b for b in BUDGETS if b >= low] or own
    gaps = {b: np.interp(b, *one) - np.interp(b, *other) for b in budgets}
    for budget, gap in gaps.items():
        yield "quality", budget, float(gap), CHANCE
    if gaps:
        yield "mean quality", low, float(np.mean(list(gaps.values()))), CHANCE
    costs = _cost_at_99(one), _cost_at_99(other)
    reached = None not in costs
    yield "cost", 0.99, costs[0] - costs[1] if reached else np.nan, 2 * COST_CHANCE


def patch_load(on_object: float, background: float, chance: float = 0.01) -> pd.DataFrame:
    """Of images, each a little more or less on its object."""
    rows = []
    for image in range(30):
        own = on_object + chance * (-1) ** image
        for share, load in ((1.0, own), (0.7, own), (0.2, 0.5), (0.0, background)):
            rows.append({"task": "t", "image": image, "object_share": share, "load": load})
    return pd.DataFrame(rows)


@cache
def _complete(**options: Any) -> dict[str, pd.DataFrame]:
    found = tables(**options)
    return found | statistics(found["tradeoff"])


def complete(**options: Any) -> dict[str, pd.DataFrame]:
    """Tables with statistics."""
    return {name: table.copy() for name, table in _complete(**options).items()}


def verdicts(tables: dict, metric: str = "accuracy", more=None, **figures) -> "Verdicts":
    """The ledger's rows; `more` are further options of `evidence_of`."""
    cfg = FiguresConfig(**({"tradeoff": ["sparse", "moefication"]} | figures))
    options = {"projections": PROJECTIONS} | (more or {})
    if "summary" not in tables:
        lists = (getattr(cfg, key) for key in cfg.model_fields_set)
        names = {name for own in lists if isinstance(own, list) for name in own}
        points = tables["tradeoff"]
        tables = tables | statistics(points[points["variant"].isin(names)])
    evidence = evidence_of("t", tables, cfg.model_dump(mode="json"), metric, **options)
    return Verdicts(evidence)


class Verdicts(dict):
    """The ledger's rows of one task by the claim, each made when it is asked for."""

    def __init__(self, evidence: Evidence):
        self.evidence = evidence

    def __missing__(self, claim: str) -> dict[str, str]:
        self[claim] = ledger([self.evidence], [CLAIMS[claim]])[-1]
        return self[claim]

    def of_all(self) -> dict[str, dict[str, str]]:
        return {row["claim"]: row for row in ledger([self.evidence])}


def test_every_claim_has_a_row_and_those_without_an_experiment_say_so():
    rows = verdicts(tables()).of_all()
    assert list(rows) == list(CLAIMS)
    assert {f"C{i}" for i in range(1, 12)} <= rows.keys()
    assert all(row["paper_says"] == CLAIMS[claim].paper_says for claim, row in rows.items())
    others = {"C9": "snakemake benchmarks tests it"}
    for claim in ("C9", "C11"):
        assert rows[claim]["verdict"] == NOT_TESTED and rows[claim]["where"] == "-"
        missing = others.get(claim, "this pipeline has no experiment for it yet")
        assert rows[claim]["evidence"] == missing
    for claim in (
        "C3",
        "C4",
        "C5",
        "C6",
        "C7",
        "C8",
        "C10",
        *(claim for claim in CLAIMS if claim.startswith("N")),
    ):  # no figure names variants for them
        assert rows[claim]["verdict"] == NOT_TESTED and rows[claim]["where"] == "t"


@pytest.mark.parametrize("claim", [name for name, claim in CLAIMS.items() if claim.test])
def test_a_claim_that_a_suite_tests_gives_findings_and_names_figures_of_tasks(claim):
    cfg = FiguresConfig(tradeoff=["sparse", "moefication"]).model_dump(mode="json")
    found = resolve(CLAIMS[claim].test)(evidence_of("t", complete(), cfg, "accuracy"))
    assert found and all(isinstance(finding, Finding) for finding in found)
    assert {x.verdict for x in found} <= {SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED}
    assert CLAIMS[claim].figures and set(CLAIMS[claim].figures) <= by_key().keys()


def test_a_variant_plays_the_part_of_its_methods_role_in_the_legends_order():
    names = ["halting", "static", "moefication", "absent", "sparse", "exits"]
    cfg = FiguresConfig(tradeoff=names).model_dump(mode="json")
    found = evidence_of("t", complete(), cfg, "accuracy")
    for role in ("ours", "baseline", "reference"):
        methods = [name for name, method in METHODS.items() if method.role == role]
        expected = [v for v in names if v in VARIANTS and VARIANTS[v][0] in methods]
        assert found.of_role("tradeoff", role) == expected
    assert found.of_role("routers", "ours") == []  # a figure that is not drawn


@pytest.mark.parametrize("without", ["layers", "activity", "both"])
def test_a_suite_whose_figures_lack_what_claims_need_tests_nothing(without):
    """Nor do tables without a row for experts matter to it."""
    names = ("layers", "activity") if without == "both" else (without,)
    found = tables()
    dense = {name: t[t["variant"] == "nothing"] for name, t in found.items() if name in names}
    missing = {name: t for name, t in found.items() if name not in names}
    for some in (found | dense, missing):
        rows = verdicts(some, tradeoff=[])
        assert {row["verdict"] for row in rows.of_all().values()} == {NOT_TESTED}


def test_a_claim_that_another_suite_tests_says_which_target_does():
    other = {"ablations": ["routers", "expert_sizes"], "compatibility": ["pruned"]}
    rows = verdicts(tables(), more={"elsewhere": other}, tradeoff=["sparse"])
    for claim, target in {"C5": "ablations", "C8": "ablations", "C10": "compatibility"}.items():
        assert rows[claim]["evidence"].endswith(f"; snakemake {target} tests it")
    assert not any("tests it" in rows[claim]["evidence"] for claim in ("C1", "C2", "C3", "C11"))
    rows = verdicts(tables(), more={"elsewhere": {"main": ["tradeoff"]}}, tradeoff=[])
    assert rows["C2"]["evidence"].endswith("; snakemake all tests it")


def test_every_task_has_its_own_row():
    cfg = FiguresConfig(tradeoff=["sparse"]).model_dump(mode="json")
    other = complete(task="u", metric="loss")
    both = {name: pd.concat([table, other[name]]) for name, table in complete().items()}
    evidence = [evidence_of("t", both, cfg, "accuracy"), evidence_of("u", both, cfg, "loss")]
    rows = [row for row in ledger(evidence) if row["claim"] == "C1"]
    assert [(row["where"], row["verdict"]) for row in rows] == [("t", SUPPORTED), ("u", SUPPORTED)]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_verdicts_are_by_the_main_metric_alone(metric):
    other = {"accuracy": "loss", "loss": "perplexity"}[metric]
    found = tables(metric=metric)
    contrary = found["tradeoff"].assign(metric=other, relative_value=0.1)
    both = found | {"tradeoff": pd.concat([contrary, found["tradeoff"]])}
    figures = {"base_sparsity": ["denser", "sparse"], "expert_sizes": ["sparse", "larger"]}
    assert verdicts(both, metric, **figures).of_all() == verdicts(found, metric, **figures).of_all()
    assert verdicts(both, metric, **figures)["C1"]["verdict"] == SUPPORTED
    assert verdicts(both, other, **figures)["C1"]["verdict"] == CONTRADICTED
    assert verdicts(both, metric, **figures)["C3"]["verdict"] == SUPPORTED


@pytest.mark.parametrize("floor", [0.1, 0.3, 0.7])
def test_the_floor_is_what_is_left_when_no_expert_runs(floor):
    cfg = FiguresConfig(tradeoff=["sparse"]).model_dump(mode="json")
    found = evidence_of("t", complete(floor=floor), cfg, "accuracy")
    assert found.floor("sparse") == pytest.approx(floor)


def test_the_floor_counts_ffns_and_attention_projections_apart():
    """Their shares need not fall alike, and they do not cost the same."""
    rows, points = [], []
    for value, ffn, q in [(0, 1.0, 1.0), (1, 0.6, 0.9), (2, 0.3, 0.8), (3, 0.2, 0.4)]:
        of = {"task": "t", "variant": "v", "seed": 0, "knob_value": value}
        rows += [of | {"role": "ffn", "num_experts": 8, "experts": 8 * ffn}]
        rows += [of | {"role": "q", "num_experts": 4, "experts": 4 * q}]
        cost = {"flops_ratio": 0.2 + 0.5 * ffn + 0.3 * q}
        points.append(of | cost | {"method": "d2dmoe", "metric": "accuracy"})
    found = {"tradeoff": pd.DataFrame(points), "layers": pd.DataFrame(rows)}
    found["summary"] = pd.DataFrame(columns=SUMMARY)
    assert evidence_of("t", found, {}, "accuracy").floor("v") == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("variant", "floor", "verdict"),
    [
        ("sparse", 0.3, SUPPORTED),
        ("sparse", 0.335, UNDECIDED),  # 59.9 %, give or take 1
        ("denser", 0.3, CONTRADICTED),
        ("sparse", 0.5, NOT_TESTED),
    ],
)
def test_c1_asks_for_60_percent_saved_where_the_ffns_hold_that_much(variant, floor, verdict):
    assert verdicts(tables(floor=floor), tradeoff=[variant])["C1"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("names", "verdict", "best"),
    [
        (["denser", "attention"], SUPPORTED, "attention"),  # whose floor is lower
        (["sparse", "poor_attention"], SUPPORTED, "sparse"),
        (["denser", "poor_attention"], CONTRADICTED, "denser"),
        (["hopeless", "denser"], CONTRADICTED, "denser"),  # one never keeps 99 %
        (["hopeless"], CONTRADICTED, "hopeless"),
        (["worse", "hopeless"], CONTRADICTED, "hopeless"),  # of two that do not, the better one
        (["moefication", "exits"], NOT_TESTED, "no D2DMoE"),
    ],
)
def test_c1_takes_the_best_d2dmoe_with_or_without_projections(names, verdict, best):
    row = verdicts(tables(floor=0.32), tradeoff=names)["C1"]
    assert row["verdict"] == verdict and best in row["evidence"].partition(", the best of ")[0]


@pytest.mark.parametrize(("best", "verdict"), [(0.985, CONTRADICTED), (0.989, UNDECIDED)])
def test_c1_is_open_while_chance_may_have_kept_it_from_99_percent(best, verdict):
    row = verdicts(tables(full=best), tradeoff=["sparse"])["C1"]
    assert row["verdict"] == verdict and "99 % of dense quality are never kept" in row["measured"]


@pytest.mark.parametrize(("kept", "verdict"), [(0.989, SUPPORTED), (0.987, CONTRADICTED)])
def test_c1_asks_what_test_samples_keep_where_validation_samples_chose(kept, verdict):
    found = complete()
    own = found["summary"]["variant"] == "sparse"
    for name, value in _cells("quality_at_99", kept, CHANCE).items():
        found["summary"].loc[own, name] = value
    row = verdicts(found, tradeoff=["sparse"])["C1"]
    assert row["verdict"] == verdict and f"test samples keep {kept:.1%} [" in row["measured"]


def test_an_interval_without_an_end_decides_nothing_on_that_side():
    found = complete()
    found["summary"].loc[found["summary"]["variant"] == "sparse", "flops_ratio_at_99_high"] = np.nan
    row = verdicts(found, tradeoff=["sparse"])["C1"]
    assert row["verdict"] == UNDECIDED and "63.0% […, 64.0%]" in row["measured"]


@pytest.mark.parametrize(
    ("seeds", "told"),
    [((0,), "seeds are not resampled"), ((0, 1), "over 2 seeds and all test samples")],
)
def test_what_the_intervals_are_of_is_said(seeds, told):
    rows = verdicts(tables(seeds=seeds), tradeoff=["sparse", "moefication", "attention"])
    for claim in ("C1", "C2", "C6"):
        assert told in rows[claim]["evidence"]
    assert (
        "moefication at 0.5 0.6 0.7 0.8 of the cost: +9.75% [+9.55%, +9.95%]"
        in (rows["C2"]["measured"])
    )


def test_seeds_that_not_all_variants_have_are_not_among_those_resampled():
    found = tables(seeds=(0, 1, 2))
    points = found["tradeoff"]
    missing = (points["variant"] == "moefication") & (points["seed"] == 1)
    fewer = found | {"tradeoff": points[~missing]}
    rows = verdicts(fewer, tradeoff=["sparse", "moefication"])
    assert "over 3 seeds and" in rows["C1"]["evidence"]
    assert "over 2 seeds and" in rows["C2"]["evidence"]


@pytest.mark.parametrize(
    ("name", "verdict"), [("attention", SUPPORTED), ("poor_attention", CONTRADICTED)]
)
def test_c1_is_tested_where_attention_projections_hold_what_the_ffns_do_not(name, verdict):
    assert verdicts(tables(floor=0.5), tradeoff=["denser"])["C1"]["verdict"] == NOT_TESTED
    assert verdicts(tables(floor=0.5), tradeoff=["denser", name])["C1"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "moefication"], SUPPORTED),
        (["poor", "moefication"], CONTRADICTED),
        (["sparse"], NOT_TESTED),
    ],
)
def test_c2_compares_the_main_variants_of_both_methods(names, verdict):
    assert verdicts(tables(), tradeoff=names)["C2"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "moefication", "exits", "halting"], SUPPORTED),
        (["sparse", "moefication", "strong_exits"], CONTRADICTED),  # one rival is enough
        (["sparse", "moefication", "close_exits"], UNDECIDED),
        (["sparse", "close_exits"], UNDECIDED),
        (["poor", "moefication", "close_exits"], CONTRADICTED),
        (["poor", "sparse", "moefication"], CONTRADICTED),  # the first is the main one
        (["attention", "poor", "moefication"], CONTRADICTED),  # of those without projections
        (["attention", "moefication"], NOT_TESTED),
    ],
)
def test_c2_asks_that_d2dmoe_of_the_ffns_beats_every_baseline(names, verdict):
    row = verdicts(tables(), tradeoff=names)["C2"]
    assert row["verdict"] == verdict
    if verdict != NOT_TESTED:
        rivals = [v for v in names if VARIANTS[v][0] != "d2dmoe"]
        assert all(f"minus {rival} at 0.5 " in row["measured"] for rival in rivals)
        assert ("no A-ViT (for images)" in row["evidence"]) == ("halting" not in names)


def moved(found: dict, variant: str, cost, quality=lambda q: q) -> dict:
    """The tables with one variant's costs and qualities changed."""
    points = found["tradeoff"].copy()
    own = points["variant"] == variant
    points.loc[own, "relative_value"] = quality(points.loc[own, "relative_value"])
    points.loc[own, "flops_ratio"] = cost(points.loc[own, "flops_ratio"])
    return found | {"tradeoff": points}


@pytest.mark.parametrize(("slope", "verdict"), [(0.003, SUPPORTED), (0.1, CONTRADICTED)])
def test_c2_takes_what_chance_may_do_for_no_difference_but_no_curve_that_crosses(slope, verdict):
    """The rival is worse at half of the cost, and better by up to slope / 10 at 0.8 of it."""
    found = tables()
    ours, theirs = (found["tradeoff"]["variant"] == name for name in ("sparse", "exits"))
    points = found["tradeoff"].copy()
    cost = points.loc[theirs, "flops_ratio"]
    gap = np.where(cost < 0.6, -0.01, slope * (cost - 0.7))
    points.loc[theirs, "relative_value"] = points.loc[ours, "relative_value"].to_numpy() + gap
    crossing = found | {"tradeoff": points}
    assert verdicts(crossing, tradeoff=["sparse", "exits"])["C2"]["verdict"] == verdict


@pytest.mark.parametrize(("loss", "verdict"), [(0.1, SUPPORTED), (-0.1, CONTRADICTED)])
def test_c2_compares_at_the_budgets_that_both_reach(loss, verdict):
    """A rival that is dear to start with; at 0.65 of the cost and above D2DMoE keeps 99.8 %."""
    found = moved(
        tables(), "exits", lambda c: 0.65 + 0.35 * (c - 0.37) / 0.63, lambda q: 0.999 - loss + 0 * q
    )
    row = verdicts(found, tradeoff=["sparse", "exits"])["C2"]
    assert row["verdict"] == verdict and "exits at 0.7 0.8 of the cost: " in row["measured"]


def test_c2_is_open_while_a_baseline_cannot_be_compared():
    """A rival whose every point is cheaper than what D2DMoE can reach."""
    found = moved(tables(floor=0.9), "exits", lambda c: 0.1 * c)
    names = ["sparse", "moefication", "exits"]
    row = verdicts(found, tradeoff=names)["C2"]
    assert row["verdict"] == NOT_TESTED and "exits: no cost in common" in row["measured"]
    assert verdicts(found, tradeoff=["sparse", "exits"])["C2"]["verdict"] == NOT_TESTED
    beaten = moved(found, "moefication", lambda c: c, lambda q: q + 0.2)  # another one decides
    assert verdicts(beaten, tradeoff=names)["C2"]["verdict"] == CONTRADICTED


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "denser"], SUPPORTED),
        (["denser", "sparse"], SUPPORTED),  # whatever the legend's order
        (["sparse", "denser", "poor"], CONTRADICTED),  # the sparsest is the worst
        (["similar", "denser"], NOT_TESTED),  # 60 % against 65 % is no other sparsity
        (["similar", "denser", "sparse"], SUPPORTED),
        (["alike", "similar"], UNDECIDED),  # a third of the active neurons, the same quality
        (["sparse"], NOT_TESTED),
    ],
)
def test_c3_compares_bases_by_their_measured_sparsity(names, verdict):
    assert verdicts(tables(), base_sparsity=names)["C3"]["verdict"] == verdict
    assert verdicts(tables(), sparsity_levels=names)["C3"]["verdict"] == verdict


def test_c3_says_which_sparsity_it_asks_for():
    row = verdicts(tables(), base_sparsity=["similar", "denser"])["C3"]
    assert row["measured"] == "-" and "sparsity differs too little" in row["evidence"]
    assert "denser: 65.0% active, similar: 60.0% active" in row["evidence"]


def test_c3_takes_the_levels_of_alpha_before_the_two_bases_of_figure_2a():
    names = {"base_sparsity": ["sparse", "poor"], "sparsity_levels": ["denser", "sparse"]}
    row = verdicts(tables(), **names)["C3"]
    assert row == verdicts(tables(), sparsity_levels=["denser", "sparse"])["C3"]
    assert row["verdict"] == SUPPORTED and "sparse" in row["measured"]
    assert "65.0% active" in row["evidence"] and "poor" not in row["measured"]


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "static"], SUPPORTED),
        (["static", "sparse"], SUPPORTED),  # whatever the legend's order
        (["poor", "static"], CONTRADICTED),
        (["denser", "static"], CONTRADICTED),  # neither better nor more varied
        (["sparse", "alike"], UNDECIDED),  # varied, but not better
        (["sparse"], NOT_TESTED),
    ],
)
def test_c4_compares_dynamic_with_static_selection(names, verdict):
    assert verdicts(tables(), selection_rules=names)["C4"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "classified"], SUPPORTED),
        (["classified", "sparse"], CONTRADICTED),  # the first is the one that regresses
        (["sparse", "classified", "poor"], SUPPORTED),
        (["sparse", "classified", "attention"], UNDECIDED),  # of all others, one a tie
        (["classified", "sparse", "attention"], CONTRADICTED),
        (["sparse", "static"], NOT_TESTED),  # another selection rule
        (["sparse", "moefication"], NOT_TESTED),  # another base
        (["static", "moefication"], NOT_TESTED),
        (["sparse"], NOT_TESTED),
    ],
)
def test_c5_compares_routers_of_one_base_and_one_rule(names, verdict):
    assert verdicts(tables(), routers=names)["C5"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "attention", "moefication"], SUPPORTED),
        (["attention", "sparse"], SUPPORTED),  # whatever the legend's order
        (["sparse", "poor_attention"], CONTRADICTED),
        (["denser", "poor_attention"], CONTRADICTED),
        (["hopeless", "attention"], SUPPORTED),  # by the curves, as one never keeps 99 %
        (["hopeless", "poor_attention"], CONTRADICTED),
        (["attention", "moefication"], NOT_TESTED),
        (["sparse", "moefication"], NOT_TESTED),
    ],
)
def test_c6_compares_d2dmoe_with_and_without_projections(names, verdict):
    rows = verdicts(tables(), tradeoff=names)
    assert rows["C6"]["verdict"] == verdict
    assert verdicts(tables(), tradeoff=[], phases=names)["C6"] == rows["C6"]


def test_c6_is_open_where_the_costs_may_be_equal():
    found = complete()
    rows = found["comparisons"]
    own = (rows["measure"] == "cost") & (rows["variant"] == "attention")
    own &= rows["rival"] == "sparse"
    rows.loc[own, ["difference", "low", "high"]] = [-0.01, -0.03, 0.01]
    rows = rows[~((rows["variant"] == "sparse") & (rows["rival"] == "attention"))]
    row = verdicts(found | {"comparisons": rows}, tradeoff=["sparse", "attention"])["C6"]
    assert row["verdict"] == UNDECIDED


def test_c6_compares_with_the_phase_before():
    phases = ["moefication", "poor", "sparse", "attention"]
    row = verdicts(tables(), phases=phases)["C6"]
    assert row["measured"].startswith("attention minus sparse: -18.00% [-20.00%, -16.00%] of the")


MAPS = {"variant": "sparse", "value": 0.5}


@pytest.mark.parametrize(
    ("loads", "verdict"),
    [
        ((0.6, 0.3), SUPPORTED),
        ((0.3, 0.6), CONTRADICTED),
        ((0.31, 0.3, 0.3), UNDECIDED),  # images differ by more
    ],
)
def test_c7_compares_objects_with_background(loads, verdict):
    found = tables() | {"patch_load": patch_load(*loads)}
    row = verdicts(found, load_maps=MAPS | {"foreground": True})["C7"]
    assert row["verdict"] == verdict and f"{loads[0]:.1%} of the experts on obj" in row["measured"]


@pytest.mark.parametrize("maps", [None, MAPS, MAPS | {"foreground": True}], ids=str)
def test_c7_is_not_tested_without_maps_of_a_known_foreground(maps):
    """A task of texts has no maps; other tasks of the same run may have."""
    of_others = patch_load(0.6, 0.3).assign(task="u")
    assert verdicts(tables() | {"patch_load": of_others}, load_maps=maps)["C7"]["verdict"] == (
        NOT_TESTED
    )
    if maps is None:  # no task at all has any
        assert verdicts(tables(), load_maps=maps)["C7"]["verdict"] == NOT_TESTED


@pytest.mark.parametrize(
    ("sizes", "activations", "verdict"),
    [
        (["sparse", "larger"], [], SUPPORTED),
        (["larger", "sparse"], [], SUPPORTED),  # whatever the legend's order
        (["poor", "larger"], [], CONTRADICTED),
        (["sparse", "alike"], [], UNDECIDED),  # a tie
        (["sparse"], [], NOT_TESTED),
        (["sparse", "larger"], ["sparse", "denser"], SUPPORTED),
        (["sparse", "larger"], ["sparse", "hopeless"], CONTRADICTED),  # never keeps 99 %
        (["poor", "larger"], ["sparse", "denser"], CONTRADICTED),
        (["sparse", "alike"], ["sparse", "denser"], UNDECIDED),
    ],
)
def test_c8_asks_for_better_small_experts_and_for_both_activations(sizes, activations, verdict):
    row = verdicts(tables(), expert_sizes=sizes, activations=activations)["C8"]
    assert row["verdict"] == verdict
    if verdict != NOT_TESTED:
        assert row["evidence"].endswith("; sizes only") == (not activations)
        assert all(f"{name}: " in row["measured"] for name in activations)


def compressed(kept: float = 0.995, saved: float | None = 0.4) -> dict:
    """Tables with a pruned model and its conversion: what it keeps of that model's quality where it
    saves a share of its cost; None: not every seed keeps 99 %, `kept` at best."""
    found = complete()
    points = [
        {"task": "t", "seed": seed, "metric": "accuracy", "method": "d2dmoe", "variant": name}
        for seed in SEEDS
        for name in ("pruned", "converted")
    ]
    measured = {"saved": (np.nan if saved is None else saved, 0.005), "kept": (kept - 0.99, CHANCE)}
    rows = [
        {"task": "t", "metric": "accuracy", "variant": "converted", "rival": "pruned"}
        | {"measure": measure, "at": 0.99}
        | {"difference": value, "low": value - chance, "high": value + chance}
        for measure, (value, chance) in measured.items()
    ]
    more = {"tradeoff": points, "comparisons": rows}
    return found | {n: pd.concat([found[n], pd.DataFrame(x)]) for n, x in more.items()}


PRUNED = {"pruned": {"converted": "converted", "references": ["pruned", "pruned_finetuned"]}}


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, SUPPORTED),
        ({"saved": 0.11}, SUPPORTED),
        ({"saved": 0.1}, UNDECIDED),
        ({"saved": 0.05}, CONTRADICTED),
        ({"kept": 0.985}, CONTRADICTED),  # of the test samples, where validation samples chose
        ({"saved": None, "kept": 0.985}, CONTRADICTED),
        ({"saved": None, "kept": 0.989}, UNDECIDED),
    ],
)
def test_c10_asks_for_a_saving_on_top_of_the_compressed_models_own(options, verdict):
    row = verdicts(compressed(**options), more={"bases": PRUNED})["C10"]
    assert (row["where"], row["verdict"]) == ("t: pruned", verdict)
    if not options:
        assert row["measured"].startswith("40.0% [39.5%, 40.5%] of the model's FLOPs saved")


def test_c10_has_a_row_for_each_base():
    bases = PRUNED | {"distilled": {"converted": "nothing", "references": ["distilled"]}}
    cfg = FiguresConfig().model_dump(mode="json")
    evidence = evidence_of("t", compressed(), cfg, "accuracy", bases=bases)
    rows = [row for row in ledger([evidence]) if row["claim"] == "C10"]
    assert [row["where"] for row in rows] == ["t: pruned", "t: distilled"]
    assert [row["verdict"] for row in rows] == [SUPPORTED, NOT_TESTED]


def timed(time, shares=(1.0, 0.8, 0.6, 0.4, 0.2, 0.1), **of) -> pd.DataFrame:
    """A layer's times: dynamic-k as a function of the share, dense 1 ms, and at best 0.8 ms."""
    layer = {"device": "GPU", "tokens": 9, "d_model": 8, "num_experts": 24, "expert_size": 128}
    layer |= {"activation": "relu", "dtype": "bf16", "mask": "bernoulli"} | of
    dense = {"dense_eager": 1.0, "dense_addmm": 0.8}
    rows = [{"backend": name, "fraction": 1.0, "median_ms": ms} for name, ms in dense.items()]
    for share in shares:
        point = {"fraction": share, "median_ms": time(share)}
        rows += [point | {"backend": "dynamic_k"}, point | {"backend": "dynamic_k_experts"}]
    return pd.DataFrame([layer | row for row in rows])


@pytest.mark.parametrize(
    ("time", "verdict", "measured"),
    [
        (lambda f: 0.1 + f, SUPPORTED, ["0.1 ms + 1 ms", "4.00 at 10.0%", "break-even at 70.0%"]),
        (lambda f: 0.1 + 0.5 * f, SUPPORTED, ["1.33 at 100.0%", "faster at all shares"]),
        (lambda f: 2 + f, SUPPORTED, ["0.27 at 100.0%", "not faster even at the least share"]),
        (lambda f: 0.2 + 0.6 * f**4, CONTRADICTED, ["4.00 at 10.0%", "break-even at 100.0%"]),
        (lambda f: 1 - 0.5 * f, CONTRADICTED, ["1.60 at 100.0%"]),  # linear, but it rises
    ],
)
def test_c9_asks_for_a_rising_line_and_measures_factors_and_break_even(time, verdict, measured):
    (row,) = wall_clock_ledger([timed(time)])
    assert list(row) == COLUMNS and (row["claim"], row["verdict"]) == ("C9", verdict)
    assert all(part in row["measured"] for part in measured)
    assert row["where"].startswith("layer: 24 × 128, relu, 9 tokens, bf16, bernoulli mask, GPU")
    assert "dense_addmm, 0.8 ms" in row["evidence"]


def test_c9_is_of_the_first_layer_format_and_mask_of_each_table():
    first = timed(lambda f: 0.1 + f)
    others = [{"expert_size": 64}, {"dtype": "fp32"}, {"mask": "clustered"}]
    more = [timed(lambda f: 1 - f, **of) for of in others]
    rows = wall_clock_ledger([pd.concat([first, *more]), first])
    assert len(rows) == 2 and rows[0] == rows[1]


def test_c9_needs_three_shares():
    (row,) = wall_clock_ledger([timed(lambda f: f, shares=(1.0, 0.5))])
    assert row["verdict"] == NOT_TESTED and "at 3 shares" in row["evidence"]


@pytest.mark.parametrize(
    ("named", "verdict"),
    [
        (["sparse", "one_threshold", "thresholds"], SUPPORTED),
        (["one_threshold", "other_thresholds", "thresholds"], CONTRADICTED),  # the first of each
        (["sparse", "thresholds"], NOT_TESTED),
        (["sparse", "one_threshold"], NOT_TESTED),
    ],
)
def test_n1_chess_is_above_cats(named, verdict):
    assert verdicts(tables(), neighbours=named)["N1"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("claim", "named", "verdict"),
    [
        ("N2", ["one_threshold", "inputs"], SUPPORTED),
        ("N2", ["one_threshold", "poor_inputs", "inputs"], CONTRADICTED),
        ("N2", ["good_threshold", "inputs"], UNDECIDED),
        ("N2", ["one_threshold", "thresholds"], NOT_TESTED),
        ("N3", ["inputs"], SUPPORTED),  # down to 0.3 of the cost
        ("N3", ["poor_inputs", "inputs"], CONTRADICTED),
        ("N3", ["one_threshold"], NOT_TESTED),
        ("N4", ["good_threshold"], SUPPORTED),
        ("N4", ["even_threshold"], UNDECIDED),
        ("N4", ["one_threshold", "good_threshold"], CONTRADICTED),
        ("N4", ["thresholds"], NOT_TESTED),
        ("N5", ["carved"], SUPPORTED),
        ("N5", ["poor_carved"], CONTRADICTED),
        ("N5", ["sparse"], NOT_TESTED),
        ("N6", ["carved", "moefication"], SUPPORTED),
        ("N6", ["poor_carved", "moefication"], CONTRADICTED),
        ("N6", ["carved", "sparse"], NOT_TESTED),
        ("N7", ["factors", "poor_factors"], SUPPORTED),
        ("N7", ["even_factors"], UNDECIDED),
        ("N7", ["poor_factors"], CONTRADICTED),
        ("N7", ["sparse"], NOT_TESTED),
        ("N8", ["sparse", "fewer"], SUPPORTED),  # three quarters of the experts
        ("N8", ["sparse", "as_many"], NOT_TESTED),
        ("N8", ["fewer"], NOT_TESTED),  # than whose?
        ("N9", ["adapted"], SUPPORTED),
        ("N9", ["poor_adapted"], CONTRADICTED),
        ("N9", ["exits"], NOT_TESTED),
        ("N10", ["sparse", "one_threshold", "carved"], SUPPORTED),
        ("N10", ["sparse", "one_threshold", "inputs"], UNDECIDED),  # which is as good
        ("N10", ["denser", "one_threshold", "inputs"], CONTRADICTED),
        ("N10", ["sparse", "adapted"], NOT_TESTED),
        ("N10", ["inputs"], NOT_TESTED),
        ("N11", ["sparse", "static", "gated"], SUPPORTED),
        ("N11", ["static", "even_gated"], UNDECIDED),
        ("N11", ["static", "poor_gated", "gated"], CONTRADICTED),
        ("N11", ["sparse", "gated"], NOT_TESTED),
        ("N11", ["static"], NOT_TESTED),
        ("N12", ["denser", "inside"], SUPPORTED),
        ("N12", ["sparse", "inside"], UNDECIDED),  # as good
        ("N12", ["sparse", "poor_inside", "inside"], CONTRADICTED),
        ("N12", ["inside"], NOT_TESTED),  # against what?
        ("N12", ["sparse"], NOT_TESTED),
        ("N13", ["removed"], SUPPORTED),
        ("N13", ["even_removed"], UNDECIDED),
        ("N13", ["poor_removed", "removed"], CONTRADICTED),
        ("N13", ["sparse"], NOT_TESTED),
    ],
)
def test_what_neighbours_claim_is_decided_by_the_first_variant_of_each(claim, named, verdict):
    row = verdicts(tables(), neighbours=named)[claim]
    assert row["verdict"] == verdict
    assert (row["measured"] == "-") == (verdict == NOT_TESTED)


@pytest.mark.parametrize(("best", "verdict"), [(0.98, CONTRADICTED), (0.989, UNDECIDED)])
@pytest.mark.parametrize("claim", ["N3", "N4", "N5", "N8", "N9", "N13"])
def test_a_neighbour_that_never_keeps_99_percent_saves_nothing(claim, best, verdict):
    names = ["sparse", "good_threshold", "inputs", "carved", "fewer", "adapted", "removed"]
    assert verdicts(tables(full=best), neighbours=names)[claim]["verdict"] == verdict


@pytest.mark.parametrize(("floor", "tested"), [(0.6, True), (0.8, False)])
def test_n7_asks_for_what_the_summary_has(floor, tested):
    row = verdicts(tables(floor=floor), neighbours=["factors"])["N7"]
    assert (row["verdict"] != NOT_TESTED) == tested


def test_n5_asks_for_the_cost_at_which_three_quarters_of_the_experts_run():
    """Executed shares stand in the table of layers: two layers run 0.8 and 1.2 of the mean."""
    row = verdicts(tables(floor=0.2), neighbours=["carved"])["N5"]
    assert "80.0% is its cost where 75% of its experts run" in row["evidence"]
    only = tables()
    only["tradeoff"] = only["tradeoff"][only["tradeoff"]["knob_value"] > 0.8]
    assert "no points on both sides" in verdicts(only, neighbours=["carved"])["N5"]["evidence"]


def test_n11_asks_for_a_quarter_of_the_experts_and_not_of_the_cost():
    """By top-k 99 % are kept at 0.9 of the cost, of which the floor is no experts'."""
    row = verdicts(tables(floor=0.3), neighbours=["static", "even_gated"])["N11"]
    assert row["measured"].startswith("even_gated minus static: -15.00% [-17.00%, -13.00%]")
    assert row["measured"].endswith("against -15.00%")
    row = verdicts(tables(floor=0.5), neighbours=["static", "even_gated"])["N11"]
    assert row["measured"].endswith("against -10.00%") and row["verdict"] == SUPPORTED


def test_n11_needs_two_that_keep_99_percent():
    row = verdicts(tables(full=0.98), neighbours=["static", "gated"])["N11"]
    assert row["verdict"] == NOT_TESTED and "not both keep 99 %" in row["evidence"]
