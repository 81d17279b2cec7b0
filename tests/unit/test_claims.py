"""Laws of the ledger of claims: verdicts follow from the tables, and what was not run is said."""

import numpy as np
import pandas as pd
import pytest

from d2dmoe.claims import CLAIMS
from d2dmoe.claims.evidence import evidence_of
from d2dmoe.claims.findings import CONTRADICTED, NOT_TESTED, SUPPORTED, Finding
from d2dmoe.claims.ledger import COLUMNS, ledger, wall_clock_ledger
from d2dmoe.config.figures import FiguresConfig
from d2dmoe.figures import by_key
from d2dmoe.lookup import resolve
from d2dmoe.methods import METHODS

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
    "exits": ("ztw", "confidence", 0.15, [], 0),
    "strong_exits": ("ztw", "confidence", 0.002, [], 0),
    "halting": ("avit", "depth", 0.3, [], 0),
    "classified": ("d2dmoe", "dynamic_k", 0.2, [10, 30], 8),
    "attention": ("d2dmoe", "dynamic_k", 0.005, [10, 30], 8),
    "poor_attention": ("d2dmoe", "dynamic_k", 0.6, [10, 30], 8),
}
FLOORS = {
    "attention": 0.1,
    "poor_attention": 0.1,
}  # of the cost; the other variants' is a parameter
PROJECTIONS = list(FLOORS)


def tables(
    metric: str = "accuracy", floor: float = 0.3, task: str = "t", full: float = 1.0
) -> dict[str, pd.DataFrame]:
    """Tables of curves that fall linearly with the cost, from `full` of the dense quality."""
    points, layers, activity = [], [], []
    for variant, (method, rule, loss, active, experts) in VARIANTS.items():
        for seed in (0, 1):
            of = {"task": task, "variant": variant, "seed": seed}
            left = FLOORS.get(variant, floor)
            for share in SHARES:
                ratio = left + (1 - left) * share
                best = full if variant != "hopeless" else 0.98
                quality = {"relative_value": best - loss * (1 - ratio), "flops_ratio": ratio}
                knob = {"knob": rule, "knob_value": share}
                points.append(of | knob | quality | {"method": method, "metric": metric})
                for layer, part in enumerate((0.8, 1.2) if experts else ()):
                    row = {"layer": layer, "num_experts": experts, "role": "ffn"}
                    layers.append(of | knob | row | {"experts": share * part * experts})
            activity += [of | {"layer": 0, "active": a, "d_ff": D_FF, "tokens": 5} for a in active]
    frames = {"tradeoff": points, "layers": layers, "activity": activity}
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def patch_load(on_object: float, background: float) -> pd.DataFrame:
    rows = {"object_share": [1.0, 0.7, 0.2, 0.0], "load": [on_object, on_object, 0.5, background]}
    return pd.DataFrame(rows).assign(task="t")


def verdicts(tables: dict, metric: str = "accuracy", more=None, **figures) -> dict[str, dict]:
    """The ledger's rows of one task, by the claim; `more` are further options of `evidence_of`."""
    cfg = FiguresConfig(**({"tradeoff": ["sparse", "moefication"]} | figures))
    options = {"projections": PROJECTIONS} | (more or {})
    evidence = evidence_of("t", tables, cfg.model_dump(mode="json"), metric, **options)
    return {row["claim"]: row for row in ledger([evidence])}


def test_every_claim_has_a_row_and_those_without_an_experiment_say_so():
    rows = verdicts(tables())
    assert list(rows) == list(CLAIMS) == [f"C{i}" for i in range(1, 12)]
    assert all(row["paper_says"] == CLAIMS[claim].paper_says for claim, row in rows.items())
    others = {"C9": "snakemake benchmarks tests it"}
    for claim in ("C9", "C11"):
        assert rows[claim]["verdict"] == NOT_TESTED and rows[claim]["where"] == "-"
        missing = others.get(claim, "this pipeline has no experiment for it yet")
        assert rows[claim]["evidence"] == missing
    for claim in ("C3", "C4", "C5", "C6", "C7", "C8", "C10"):  # no figure names variants for them
        assert rows[claim]["verdict"] == NOT_TESTED and rows[claim]["where"] == "t"


@pytest.mark.parametrize("claim", [name for name, claim in CLAIMS.items() if claim.test])
def test_a_claim_that_a_suite_tests_gives_findings_and_names_figures_of_tasks(claim):
    cfg = FiguresConfig(tradeoff=["sparse", "moefication"]).model_dump(mode="json")
    found = resolve(CLAIMS[claim].test)(evidence_of("t", tables(), cfg, "accuracy"))
    assert found and all(isinstance(finding, Finding) for finding in found)
    assert {finding.verdict for finding in found} <= {SUPPORTED, CONTRADICTED, NOT_TESTED}
    assert CLAIMS[claim].figures and set(CLAIMS[claim].figures) <= by_key().keys()


def test_a_variant_plays_the_part_of_its_methods_role_in_the_legends_order():
    names = ["halting", "static", "moefication", "absent", "sparse", "exits"]
    cfg = FiguresConfig(tradeoff=names).model_dump(mode="json")
    found = evidence_of("t", tables(), cfg, "accuracy")
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
        assert {row["verdict"] for row in rows.values()} == {NOT_TESTED}


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
    both = {
        name: pd.concat([table, tables(task="u", metric="loss")[name]])
        for name, table in tables().items()
    }
    evidence = [evidence_of("t", both, cfg, "accuracy"), evidence_of("u", both, cfg, "loss")]
    rows = [row for row in ledger(evidence) if row["claim"] == "C1"]
    assert [(row["where"], row["verdict"]) for row in rows] == [("t", SUPPORTED), ("u", SUPPORTED)]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_verdicts_are_by_the_main_metric_alone(metric):
    other = {"accuracy": "loss", "loss": "perplexity"}[metric]
    found = tables(metric)
    contrary = found["tradeoff"].assign(metric=other, relative_value=0.1)
    both = found | {"tradeoff": pd.concat([contrary, found["tradeoff"]])}
    figures = {"base_sparsity": ["denser", "sparse"], "expert_sizes": ["sparse", "larger"]}
    assert verdicts(both, metric, **figures) == verdicts(found, metric, **figures)
    assert verdicts(both, metric, **figures)["C1"]["verdict"] == SUPPORTED
    assert verdicts(both, other, **figures)["C1"]["verdict"] == CONTRADICTED


@pytest.mark.parametrize("floor", [0.1, 0.3, 0.7])
def test_the_floor_is_what_is_left_when_no_expert_runs(floor):
    cfg = FiguresConfig(tradeoff=["sparse"]).model_dump(mode="json")
    found = evidence_of("t", tables(floor=floor), cfg, "accuracy")
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
    assert evidence_of("t", found, {}, "accuracy").floor("v") == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("variant", "floor", "verdict"),
    [("sparse", 0.3, SUPPORTED), ("denser", 0.3, CONTRADICTED), ("sparse", 0.5, NOT_TESTED)],
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
        (["moefication", "exits"], NOT_TESTED, "no D2DMoE"),
    ],
)
def test_c1_takes_the_best_d2dmoe_with_or_without_projections(names, verdict, best):
    row = verdicts(tables(floor=0.32), tradeoff=names)["C1"]
    assert row["verdict"] == verdict and best in row["evidence"].partition(", the best of ")[0]


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
        assert all(f"minus {rival}: " in row["measured"] for rival in rivals)
        assert ("no A-ViT (for images)" in row["evidence"]) == ("halting" not in names)


def moved(found: dict, variant: str, cost, quality=lambda q: q) -> dict:
    """The tables with one variant's costs and qualities changed."""
    points = found["tradeoff"].copy()
    own = points["variant"] == variant
    points.loc[own, "relative_value"] = quality(points.loc[own, "relative_value"])
    points.loc[own, "flops_ratio"] = cost(points.loc[own, "flops_ratio"])
    return found | {"tradeoff": points}


@pytest.mark.parametrize(("slope", "verdict"), [(0.003, SUPPORTED), (0.1, CONTRADICTED)])
def test_c2_takes_small_differences_for_ties_but_no_curve_that_crosses(slope, verdict):
    """The rival is worse at half of the cost, and better by up to slope / 10 at 0.8 of it."""
    found = tables()
    ours, theirs = (found["tradeoff"]["variant"] == name for name in ("sparse", "exits"))
    points = found["tradeoff"].copy()
    cost = points.loc[theirs, "flops_ratio"]
    gap = np.where(cost < 0.6, -0.01, slope * (cost - 0.7))
    points.loc[theirs, "relative_value"] = points.loc[ours, "relative_value"].to_numpy() + gap
    crossing = found | {"tradeoff": points}
    assert verdicts(crossing, tradeoff=["sparse", "exits"])["C2"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("loss", "verdict"), [(0.1, SUPPORTED), (0.0, CONTRADICTED), (-0.1, CONTRADICTED)]
)
def test_c2_compares_at_the_budgets_that_both_reach(loss, verdict):
    """A rival that is dear to start with; at 0.65 of the cost and above D2DMoE keeps 99.8 %."""
    found = moved(
        tables(), "exits", lambda c: 0.65 + 0.35 * (c - 0.37) / 0.63, lambda q: 0.999 - loss + 0 * q
    )
    row = verdicts(found, tradeoff=["sparse", "exits"])["C2"]
    assert row["verdict"] == verdict and "at 0.7 0.8 of the cost only" in row["measured"]
    assert "exits: nan nan " in row["evidence"]


@pytest.mark.parametrize(("loss", "verdict"), [(0.1, SUPPORTED), (-0.1, CONTRADICTED)])
def test_c2_compares_where_a_baseline_is_if_it_reaches_no_budget(loss, verdict):
    found = moved(tables(), "halting", lambda c: 0.85 + 0.1 * c, lambda q: 1 - loss + 0 * q)
    row = verdicts(found, tradeoff=["sparse", "moefication", "halting"])["C2"]
    assert row["verdict"] == verdict
    assert "halting: " in row["measured"] and "at 0.887 0.908 0.929 0.95" in row["measured"]
    assert "quality at 0.887 0.908 0.929 0.95 of the cost: sparse: 0.99" in row["evidence"]


def test_c2_is_open_while_a_baseline_cannot_be_compared():
    """A rival whose every point is cheaper than what D2DMoE can reach."""
    found = moved(tables(floor=0.9), "exits", lambda c: 0.1 * c)
    names = ["sparse", "moefication", "exits"]
    row = verdicts(found, tradeoff=names)["C2"]
    assert row["verdict"] == NOT_TESTED and "exits: no cost in common" in row["measured"]
    beaten = moved(found, "moefication", lambda c: c, lambda q: q + 0.2)  # another one decides
    assert verdicts(beaten, tradeoff=names)["C2"]["verdict"] == CONTRADICTED


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "denser"], SUPPORTED),
        (["denser", "sparse"], SUPPORTED),  # whatever the legend's order
        (["sparse", "denser", "poor"], CONTRADICTED),  # the sparsest is the worst
        (["sparse"], NOT_TESTED),
    ],
)
def test_c3_compares_bases_by_their_measured_sparsity(names, verdict):
    assert verdicts(tables(), base_sparsity=names)["C3"]["verdict"] == verdict
    assert verdicts(tables(), sparsity_levels=names)["C3"]["verdict"] == verdict


def test_c3_takes_the_levels_of_alpha_before_the_two_bases_of_figure_2a():
    names = {"base_sparsity": ["sparse", "poor"], "sparsity_levels": ["denser", "sparse"]}
    row = verdicts(tables(), **names)["C3"]
    assert row == verdicts(tables(), sparsity_levels=["denser", "sparse"])["C3"]
    assert row["verdict"] == SUPPORTED and "sparse" in row["measured"]
    assert "65% active" in row["measured"] and "poor" not in row["measured"]


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["sparse", "static"], SUPPORTED),
        (["static", "sparse"], SUPPORTED),  # whatever the legend's order
        (["poor", "static"], CONTRADICTED),
        (["denser", "static"], CONTRADICTED),  # neither better nor more varied
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
        (["sparse", "classified", "attention"], CONTRADICTED),  # of all others
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


def test_c6_compares_with_the_phase_before():
    phases = ["moefication", "poor", "sparse", "attention"]
    row = verdicts(tables(), phases=phases)["C6"]
    assert row["measured"].endswith("of dense quality attention: 81.0%, sparse: 63.0%")


MAPS = {"variant": "sparse", "value": 0.5}


@pytest.mark.parametrize(
    ("loads", "verdict"), [((0.6, 0.3), SUPPORTED), ((0.3, 0.6), CONTRADICTED)]
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
        (["sparse"], [], NOT_TESTED),
        (["sparse", "larger"], ["sparse", "denser"], SUPPORTED),
        (["sparse", "larger"], ["sparse", "hopeless"], CONTRADICTED),  # never keeps 99 %
        (["poor", "larger"], ["sparse", "denser"], CONTRADICTED),
    ],
)
def test_c8_asks_for_better_small_experts_and_for_both_activations(sizes, activations, verdict):
    row = verdicts(tables(), expert_sizes=sizes, activations=activations)["C8"]
    assert row["verdict"] == verdict
    if verdict != NOT_TESTED:
        assert row["evidence"].endswith("; sizes only") == (not activations)
        assert all(f"{name}: " in row["measured"] for name in activations)


def test_the_numbers_of_the_ledger_are_means_over_seeds():
    found = tables()
    worse = found["tradeoff"]["seed"] == 1
    found["tradeoff"].loc[worse, "relative_value"] -= 0.02
    row = verdicts(found, expert_sizes=["sparse", "larger"])["C8"]
    both = [verdicts(tables(full=full), expert_sizes=["sparse", "larger"]) for full in (1, 0.98)]
    mean = np.mean([float(r["C8"]["measured"].split(": ")[-1]) for r in both])
    assert float(row["measured"].split(": ")[-1]) == pytest.approx(mean, abs=2e-4)


def compressed(quality: float, cost: float, kept: float = 0.995, saved: float = 0.4) -> dict:
    """A pruned model of a quality and cost, the same trained on, which is better by 0.02, and its
    conversion, which keeps a share of that at two costs."""
    rows = []
    for seed in (0, 1):
        of = {"task": "t", "seed": seed, "metric": "accuracy", "method": "pruned"}
        own = of | {"knob": "dense", "flops_ratio": cost}
        rows += [own | {"variant": "pruned", "relative_value": quality}]
        rows += [own | {"variant": "pruned_finetuned", "relative_value": quality + 0.02}]
        of |= {"variant": "converted", "method": "d2dmoe", "knob": "dynamic_k"}
        for share, best in ((1.03, 1.0), (1 - saved, kept)):
            point = {"flops_ratio": share * cost, "relative_value": best * (quality + 0.02)}
            rows.append(of | point | {"knob_value": share})
    found = tables()
    return found | {"tradeoff": pd.concat([found["tradeoff"], pd.DataFrame(rows)])}


PRUNED = {"pruned": {"converted": "converted", "references": ["pruned", "pruned_finetuned"]}}


@pytest.mark.parametrize("quality", [0.6, 0.97])  # it is its own base's that counts
@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, SUPPORTED),
        ({"saved": 0.11}, SUPPORTED),
        ({"saved": 0.05}, CONTRADICTED),
        ({"kept": 0.985}, CONTRADICTED),  # 99 % of the base, but not of the base trained on
    ],
)
def test_c10_asks_for_a_saving_on_top_of_the_compressed_models_own(quality, options, verdict):
    found = compressed(quality, 0.5, **options)
    row = verdicts(found, more={"bases": PRUNED})["C10"]
    assert (row["where"], row["verdict"]) == ("t: pruned", verdict)
    if not options:
        assert row["measured"].startswith("40.0% of the model's FLOPs saved")


def test_c10_has_a_row_for_each_base():
    alone = {"converted": "converted", "references": ["pruned"]}
    bases = PRUNED | {"distilled": alone | {"converted": "nothing"}, "pruned_finetuned": alone}
    cfg = FiguresConfig().model_dump(mode="json")
    evidence = evidence_of("t", compressed(0.9, 0.5), cfg, "accuracy", bases=bases)
    rows = [row for row in ledger([evidence]) if row["claim"] == "C10"]
    assert [row["where"] for row in rows] == ["t: pruned", "t: distilled", "t: pruned_finetuned"]
    assert [row["verdict"] for row in rows] == [SUPPORTED, NOT_TESTED, SUPPORTED]


def test_c10_asks_every_seed():
    found = compressed(0.9, 0.5)
    points = found["tradeoff"].reset_index(drop=True)
    points.loc[(points["variant"] == "converted") & (points["seed"] == 1), "relative_value"] = 0.5
    row = verdicts(found | {"tradeoff": points}, more={"bases": PRUNED})["C10"]
    assert row["verdict"] == CONTRADICTED and "not every seed" in row["measured"]


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
