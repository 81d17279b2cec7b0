"""Laws of the ledger of claims: verdicts follow from the tables, and what was not run is said."""

import numpy as np
import pandas as pd
import pytest

from d2dmoe.claims import CONTRADICTED, NOT_TESTED, PAPER_SAYS, SUPPORTED, evidence_of, ledger
from d2dmoe.config.experiment import FiguresConfig

SHARES = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]  # executed experts at each operating point
D_FF = 100
VARIANTS = {  # method, rule, quality lost without FFNs, active neurons, experts
    "sparse": ("d2dmoe", "dynamic_k", 0.005, [10, 30], 8),
    "denser": ("d2dmoe", "dynamic_k", 0.1, [60, 70], 8),
    "poor": ("d2dmoe", "dynamic_k", 0.5, [5, 6], 8),
    "larger": ("d2dmoe", "dynamic_k", 0.1, [10, 30], 4),
    "static": ("d2dmoe", "top_k", 0.1, [10, 30], 8),
    "moefication": ("moefication", "top_k", 0.2, [60, 70], 8),
    "hopeless": ("d2dmoe", "dynamic_k", 0.3, [10, 30], 8),
}


def tables(
    metric: str = "accuracy", floor: float = 0.3, task: str = "t", full: float = 1.0
) -> dict[str, pd.DataFrame]:
    """Tables of curves that fall linearly with the cost, from `full` of the dense quality."""
    points, layers, activity = [], [], []
    for variant, (method, rule, loss, active, experts) in VARIANTS.items():
        for seed in (0, 1):
            of = {"task": task, "variant": variant, "seed": seed}
            for share in SHARES:
                ratio = floor + (1 - floor) * share
                best = full if variant != "hopeless" else 0.98
                quality = {"relative_value": best - loss * (1 - ratio), "flops_ratio": ratio}
                knob = {"knob": rule, "knob_value": share}
                points.append(of | knob | quality | {"method": method, "metric": metric})
                for layer, part in enumerate((0.8, 1.2)):
                    row = {"layer": layer, "num_experts": experts, "experts": share * part}
                    layers.append(of | knob | row | {"experts": share * part * experts})
            activity += [of | {"layer": 0, "active": a, "d_ff": D_FF, "tokens": 5} for a in active]
    frames = {"tradeoff": points, "layers": layers, "activity": activity}
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def patch_load(on_object: float, background: float) -> pd.DataFrame:
    rows = {"object_share": [1.0, 0.7, 0.2, 0.0], "load": [on_object, on_object, 0.5, background]}
    return pd.DataFrame(rows).assign(task="t")


def verdicts(tables: dict, metric: str = "accuracy", **figures) -> dict[str, dict]:
    """The ledger's rows of one task, by the claim."""
    cfg = FiguresConfig(**({"tradeoff": ["sparse", "moefication"]} | figures))
    evidence = evidence_of("t", tables, cfg.model_dump(mode="json"), metric)
    return {row["claim"]: row for row in ledger([evidence])}


def test_every_claim_has_a_row_and_those_without_an_experiment_say_so():
    rows = verdicts(tables())
    assert list(rows) == list(PAPER_SAYS) == [f"C{i}" for i in range(1, 12)]
    for claim in ("C5", "C6", "C9", "C10", "C11"):
        assert rows[claim]["verdict"] == NOT_TESTED and rows[claim]["where"] == "-"
    for claim in ("C3", "C4", "C7", "C8"):  # no figure names variants for them
        assert rows[claim]["verdict"] == NOT_TESTED and rows[claim]["where"] == "t"


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
    assert evidence_of("t", tables(floor=floor), cfg, "accuracy").floor == pytest.approx(floor)


@pytest.mark.parametrize(
    ("variant", "floor", "verdict"),
    [("sparse", 0.3, SUPPORTED), ("denser", 0.3, CONTRADICTED), ("sparse", 0.5, NOT_TESTED)],
)
def test_c1_asks_for_60_percent_saved_where_the_ffns_hold_that_much(variant, floor, verdict):
    assert verdicts(tables(floor=floor), tradeoff=[variant])["C1"]["verdict"] == verdict


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
        (["poor", "static"], CONTRADICTED),
        (["denser", "static"], CONTRADICTED),  # neither better nor more varied
        (["sparse"], NOT_TESTED),
    ],
)
def test_c4_compares_dynamic_with_static_selection(names, verdict):
    assert verdicts(tables(), selection_rules=names)["C4"]["verdict"] == verdict


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
