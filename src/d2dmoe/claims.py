"""The paper's claims, decided by the tables: supported, contradicted, or not tested."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from d2dmoe.tables import area, cheapest, quality_at

SUPPORTED, CONTRADICTED, NOT_TESTED = "supported", "contradicted", "not tested"
BUDGETS = [0.5, 0.6, 0.7, 0.8]  # ratios at which curves are compared
TIE = 0.001  # of the dense quality: smaller differences are no differences
COLUMNS = ["claim", "paper_says", "where", "measured", "verdict", "evidence"]

PAPER_SAYS = {
    "C1": "up to 60 % lower inference cost with no significant loss (>= 99 % of dense quality)",
    "C2": "better than MoEfication, ZTW and A-ViT across budgets",
    "C3": "a sparser base model gives a better conversion, at any budget",
    "C4": "active neurons vary much between tokens, and dynamic-k beats static top-k",
    "C5": "regressing output norms beats MoEfication's classification router",
    "C6": "converting attention projections saves more on top",
    "C7": "compute goes to the object in an image, and differs by layer",
    "C8": "smaller experts are better per FLOP; ReLU and GELU bases both work",
    "C9": "a layer's wall-clock time falls linearly with its executed experts",
    "C10": "it combines with pruning, quantisation and distillation",
    "C11": "Gemma-2B keeps most of its BoolQ score down to 70 % of the compute",
}


@dataclass(frozen=True)
class Evidence:
    """The tables of one task, and which variants play which part."""

    task: str
    tradeoff: pd.DataFrame  # of the task's main metric
    activity: pd.DataFrame
    layers: pd.DataFrame
    patch_load: pd.DataFrame
    roles: dict[str, list[str]]  # figure: variants
    floor: float  # flops_ratio that is left when no expert runs

    def points(self, variant: str) -> pd.DataFrame:
        """A variant's operating points, all seeds."""
        return self.tradeoff[self.tradeoff["variant"] == variant]

    def mean(self, variant: str, measure) -> float:
        """Mean over seeds of a measure of the variant's curve."""
        return float(np.mean([measure(p) for _, p in self.points(variant).groupby("seed")]))

    def quality(self, variant: str, ratio: float) -> float:
        """Mean over seeds of the relative quality at a budget."""
        return self.mean(variant, lambda points: quality_at(points, ratio))

    def of_method(self, method: str) -> str | None:
        """The main variant of a method: the one in the cost–quality figure."""
        methods = self.tradeoff.drop_duplicates("variant").set_index("variant")["method"]
        return next((v for v in self.roles["tradeoff"] if methods[v] == method), None)


def evidence_of(task: str, tables: dict[str, pd.DataFrame], figures: dict, metric: str) -> Evidence:
    """The evidence of one task.

    Args:
        task: its name.
        tables: tradeoff, activity, layers and, if there is one, patch_load of all tasks.
        figures: the task's `figures` options, which name the variants of each comparison.
        metric: the task's main metric.
    """
    own = {name: table[table["task"] == task] for name, table in tables.items()}
    own["tradeoff"] = own["tradeoff"][own["tradeoff"]["metric"] == metric]
    roles = {key: value for key, value in figures.items() if isinstance(value, list)}
    if not (figures["load_maps"] or {}).get("foreground"):
        own["patch_load"] = pd.DataFrame()
    return Evidence(task, **own, roles=roles, floor=_floor(own["tradeoff"], own["layers"]))


def _floor(tradeoff: pd.DataFrame, layers: pd.DataFrame) -> float:
    """`flops_ratio` that is left when no expert runs: cost is linear in the executed share."""
    first = layers[layers["variant"] == layers["variant"].iloc[0]]
    share = first.assign(share=first["experts"] / first["num_experts"])
    share = share.groupby(["seed", "knob_value"])["share"].mean()
    cost = tradeoff[tradeoff["variant"] == first["variant"].iloc[0]]
    cost = cost.set_index(["seed", "knob_value"])["flops_ratio"]
    joined = pd.concat([share, cost], axis=1, join="inner")
    return float(np.polyfit(joined["share"], joined["flops_ratio"], 1)[1])


def ledger(evidence: list[Evidence]) -> list[dict[str, str]]:
    """A row per claim C1 … C11 and task it was tested on; untested claims have one row."""
    tests = {"C1": _c1, "C2": _c2, "C3": _c3, "C4": _c4, "C7": _c7, "C8": _c8}
    rows = []
    for claim, says in PAPER_SAYS.items():
        found = [(e.task, *tests[claim](e)) for e in evidence] if claim in tests else []
        found = found or [("-", "-", NOT_TESTED, "this pipeline has no experiment for it yet")]
        rows += [dict(zip(COLUMNS, (claim, says, *row), strict=True)) for row in found]
    return rows


Finding = tuple[str, str, str]  # measured, verdict, evidence


def _verdict(holds: bool) -> str:
    return SUPPORTED if holds else CONTRADICTED


def _c1(e: Evidence) -> Finding:
    variant = e.of_method("d2dmoe")
    if variant is None:
        return _untested("no D2DMoE variant among the figure's")
    ratio = e.mean(variant, lambda points: cheapest(points, 0.99))
    measured = f"{1 - ratio:.1%} of the FLOPs saved at >= 99 % of dense quality"
    if np.isnan(ratio):
        measured = "not every seed keeps 99 % of dense quality"
    if 1 - e.floor < 0.6:
        reach = f"with no expert at all {1 - e.floor:.1%} would be saved: the rest is no FFN"
        return measured, NOT_TESTED, f"summary.csv, {variant}; {reach}"
    return measured, _verdict(1 - ratio >= 0.6), f"summary.csv, {variant}"


def _c2(e: Evidence) -> Finding:
    ours, theirs = e.of_method("d2dmoe"), e.of_method("moefication")
    if ours is None or theirs is None:
        return _untested("needs a D2DMoE and a MoEfication variant")
    return _compare(e, ours, theirs, "against MoEfication only")


def _c3(e: Evidence) -> Finding:
    names = e.roles["sparsity_levels"] or e.roles["base_sparsity"]
    if len(names) < 2:
        return _untested("needs two sparsity levels")
    dense = e.activity["active"] * e.activity["tokens"] / e.activity["d_ff"]
    active = dense.groupby(e.activity["variant"]).sum()
    active /= e.activity.groupby("variant")["tokens"].sum()
    ordered = sorted(names, key=lambda v: -active[v])  # densest base first
    curves = {v: [e.quality(v, r) for r in BUDGETS] for v in ordered}
    pairs = list(zip(ordered, ordered[1:], strict=False))
    holds = all(_better(_gaps(curves[sparser], curves[denser])) for denser, sparser in pairs)
    areas = ", ".join(f"{v}: {e.mean(v, area):.3f} at {active[v]:.0%} active" for v in ordered)
    return f"area under the curve {areas}", _verdict(holds), _budgets_text(curves)


def _c4(e: Evidence) -> Finding:
    names = e.roles["selection_rules"]
    knobs = {v: e.points(v)["knob"].iloc[0] for v in names}
    dynamic = next((v for v in names if knobs[v] == "dynamic_k"), None)
    static = next((v for v in names if knobs[v] == "top_k"), None)
    if dynamic is None or static is None:
        return _untested("needs one router with dynamic_k and with top_k")
    spread = _spread_of_active(e.activity[e.activity["variant"] == dynamic])
    measured, verdict, evidence = _compare(e, dynamic, static, "same model, same routers")
    varies = f"active neurons per token vary by {spread:.0%} (standard deviation / mean)"
    return f"{varies}; {measured}", verdict if spread > 0.1 else CONTRADICTED, evidence


def _c7(e: Evidence) -> Finding:
    table = e.patch_load
    if table.empty:
        return _untested("no load maps with a known foreground")
    on_object = table.loc[table["object_share"] >= 0.5, "load"].mean()
    background = table.loc[table["object_share"] == 0, "load"].mean()
    main = e.layers[e.layers["variant"] == e.of_method("d2dmoe")]
    value = sorted(main["knob_value"].unique())[len(main["knob_value"].unique()) // 2]
    share = main[main["knob_value"] == value].eval("experts / num_experts")
    by_layer = share.groupby(main["layer"]).mean()
    measured = (
        f"{on_object:.1%} of the experts on object patches, {background:.1%} on background; "
        f"{by_layer.min():.0%} to {by_layer.max():.0%} by layer at {value}"
    )
    holds = on_object > background and by_layer.max() > 1.1 * by_layer.min()
    return measured, _verdict(holds), "patch_load.csv, layers.csv"


def _c8(e: Evidence) -> Finding:
    names = e.roles["expert_sizes"]
    sizes = {
        v: e.layers.loc[e.layers["variant"] == v, "num_experts"].max() for v in names
    }  # more experts: smaller ones
    if len(names) < 2:
        return _untested("needs two expert sizes")
    ordered = sorted(names, key=lambda v: sizes[v])
    areas = [e.mean(v, area) for v in ordered]
    measured = ", ".join(
        f"{sizes[v]} experts: {a:.4f}" for v, a in zip(ordered, areas, strict=True)
    )
    evidence = "summary.csv, area under the curve"
    if not e.roles["activations"]:
        return measured, _verdict(areas == sorted(areas)), f"{evidence}; sizes only"
    kept = {v: e.mean(v, lambda points: cheapest(points, 0.99)) for v in e.roles["activations"]}
    bases = ", ".join(
        f"{v}: {'not every seed' if np.isnan(ratio) else f'{ratio:.2f}'}"
        for v, ratio in kept.items()
    )
    works = all(ratio < 1 for ratio in kept.values())  # false where 99 % is never reached
    measured += f"; of the cost for >= 99 % of dense quality {bases}"
    return measured, _verdict(areas == sorted(areas) and works), evidence


def _compare(e: Evidence, ours: str, theirs: str, note: str) -> Finding:
    """Whether one curve is above the other somewhere and, but for ties, below it nowhere."""
    curves = {v: [e.quality(v, r) for r in BUDGETS] for v in (ours, theirs)}
    gaps = _gaps(curves[ours], curves[theirs])
    if not gaps:
        return _untested("the two curves share no budget")
    measured = f"{ours} minus {theirs}: {min(gaps):+.2%} to {max(gaps):+.2%} of dense quality"
    return measured, _verdict(_better(gaps)), f"{_budgets_text(curves)}; {note}"


def _gaps(ours: list[float], theirs: list[float]) -> list[float]:
    """Differences at the budgets that both curves reach."""
    return [a - b for a, b in zip(ours, theirs, strict=True) if not np.isnan(a - b)]


def _better(gaps: list[float]) -> bool:
    return max(gaps, default=0) > TIE and min(gaps) >= -TIE


def _budgets_text(curves: dict[str, list[float]]) -> str:
    texts = (f"{v}: " + " ".join(f"{q:.4f}" for q in qualities) for v, qualities in curves.items())
    return f"quality at {' '.join(map(str, BUDGETS))} of the cost: " + "; ".join(texts)


def _spread_of_active(activity: pd.DataFrame) -> float:
    """Standard deviation over tokens divided by the mean, averaged over layers and seeds."""

    def of_layer(rows: pd.DataFrame) -> float:
        mean = np.average(rows["active"], weights=rows["tokens"])
        variance = np.average((rows["active"] - mean) ** 2, weights=rows["tokens"])
        return float(np.sqrt(variance) / mean)

    return float(np.mean([of_layer(rows) for _, rows in activity.groupby(["seed", "layer"])]))


def _untested(why: str) -> Finding:
    return "-", NOT_TESTED, why
