"""Claims that cost is saved without significant loss: C1 (how much), C6 (attention projections) and
C10 (compressed models).
"""

import numpy as np
import pandas as pd

from d2dmoe.claims.evidence import KEPT, Evidence
from d2dmoe.claims.findings import NOT_TESTED, Finding, beats, untested, verdict_of
from d2dmoe.tables import cheapest

PAPER_SAVES = 0.6  # of the dense cost
STILL_SAVES = 0.1  # of a compressed model's cost: what counts as a saving on top


def inference_cost(e: Evidence) -> list[Finding]:
    """C1: the cheapest D2DMoE of the cost–quality figure, with or without attention projections."""
    ours = e.of_role("tradeoff", "ours")
    if not ours:
        return [untested("no D2DMoE variant among the figure's")]
    costs = {v: e.saving_cost(v) for v in ours}
    best = min(ours, key=lambda v: np.nan_to_num(costs[v], nan=np.inf))
    saved, reach = 1 - costs[best], 1 - min(e.floor(v) for v in ours)
    measured = f"{saved:.1%} of the FLOPs saved at >= 99 % of dense quality"
    if np.isnan(saved):
        measured = "not every seed keeps 99 % of dense quality"
    evidence = f"summary.csv, {best}" + (f", the best of {', '.join(ours)}" if ours[1:] else "")
    if reach < PAPER_SAVES:
        reason = f"with no expert at all {reach:.1%} would be saved: the rest is not converted"
        return [Finding(measured, NOT_TESTED, f"{evidence}; {reason}")]
    return [Finding(measured, verdict_of(saved >= PAPER_SAVES), evidence)]


def attention_projections(e: Evidence) -> list[Finding]:
    """C6: with attention projections D2DMoE costs less without significant loss; where not both
    keep their quality in every seed, it has the better curve."""
    pairs = (_pair(e, figure) for figure in ("tradeoff", "phases"))
    pair = next((p for p in pairs if p), None)
    if pair is None:
        return [untested("needs D2DMoE with attention projections and without")]
    without, converted = pair
    costs = {v: e.saving_cost(v) for v in (converted, without)}
    if np.isnan(list(costs.values())).any():
        note = "not every seed of both keeps 99 % of dense quality"
        return [beats(e, converted, [without], note)]
    texts = (f"{v}: {1 - cost:.1%}" for v, cost in costs.items())
    measured = f"of the FLOPs saved at >= 99 % of dense quality {', '.join(texts)}"
    return [Finding(measured, verdict_of(costs[converted] < costs[without]), "summary.csv")]


def _pair(e: Evidence, figure: str) -> tuple[str, str] | None:
    """D2DMoE without and with attention projections: the first with, and the nearest without in the
    legend, which in a figure of phases is the phase before."""
    ours = e.of_role(figure, "ours")
    converted = next((v for v in ours if v in e.projections), None)
    without = [v for v in ours if v not in e.projections]
    if converted is None or not without:
        return None
    place = ours.index(converted)
    return min(without, key=lambda v: abs(ours.index(v) - place)), converted


def compressed_models(e: Evidence) -> list[Finding]:
    """C10: a conversion of each compressed model saves a tenth of that model's own cost without
    significant loss of its own quality."""
    if not e.bases:
        return [untested("no compressed model is converted")]
    return [_compressed(e, base) for base in e.bases]


def _compressed(e: Evidence, base: str) -> Finding:
    converted, references = e.bases[base]["converted"], e.bases[base]["references"]
    if e.points(base).empty or e.points(converted).empty:
        return untested(f"needs operating points of {base} and {converted}", base)
    rivals = list(dict.fromkeys([base, *references]))
    quality = pd.concat([e.points(v) for v in rivals]).groupby("seed")["relative_value"].max()
    cost = e.points(base).groupby("seed")["flops_ratio"].min()
    points = e.points(converted)
    points = points.assign(
        relative_value=points["relative_value"] / points["seed"].map(quality),
        flops_ratio=points["flops_ratio"] / points["seed"].map(cost),
    )
    ratio = float(np.mean([cheapest(own, KEPT) for _, own in points.groupby("seed")]))
    measured = f"{1 - ratio:.1%} of the model's FLOPs saved at >= 99 % of its quality"
    if np.isnan(ratio):
        measured = "not every seed keeps 99 % of the model's quality"
    evidence = f"tradeoff.csv, {converted} against the better of {', '.join(rivals)}"
    return Finding(measured, verdict_of(1 - ratio >= STILL_SAVES), evidence, base)
