"""Claims that cost is saved without significant loss: C1 (how much), C6 (attention projections) and
C10 (compressed models).
"""

import numpy as np

from d2dmoe.bootstrap import Estimate
from d2dmoe.claims.evidence import KEPT, Evidence
from d2dmoe.claims.findings import (
    NOT_TESTED,
    Finding,
    above,
    all_of,
    beats,
    falls_short,
    not_below,
    resampling,
    share,
    shown,
    untested,
)

PAPER_SAVES = 0.6  # of the dense cost
STILL_SAVES = 0.1  # of a compressed model's cost: what counts as a saving on top
CHOSEN = "where validation samples keep 99 %"


def inference_cost(e: Evidence) -> list[Finding]:
    """C1: the cheapest D2DMoE of the cost–quality figure, with or without attention projections."""
    ours = [v for v in e.of_role("tradeoff", "ours") if e.kept(v)]
    if not ours:
        return [untested("no D2DMoE variant among the figure's")]
    best = min(ours, key=lambda v: _order(e.cost(v), e.kept(v)))
    measured, verdict = _saved(e, best)
    evidence = f"summary.csv, {best}" + (f", the best of {', '.join(ours)}" if ours[1:] else "")
    evidence += f"; {resampling(e, [best])}"
    reach = 1 - min(e.floor(v) for v in ours)
    if reach < PAPER_SAVES:
        reason = f"with no expert at all {reach:.1%} would be saved: the rest is not converted"
        return [Finding(measured, NOT_TESTED, f"{evidence}; {reason}")]
    return [Finding(measured, verdict, evidence)]


def _order(cost: Estimate | None, kept: Estimate | None) -> tuple[float, float]:
    """The cheapest first; of those without a cost the one that keeps most."""
    return np.inf if cost is None else cost.value, 0.0 if kept is None else -kept.value


def _saved(e: Evidence, variant: str) -> tuple[str, str]:
    """What a variant saves, in words, and the verdict on the paper's share."""
    cost, kept = e.cost(variant), e.kept(variant)
    assert kept is not None
    if cost is None:
        return falls_short(kept)
    saved = Estimate(1 - cost.value, 1 - cost.high, 1 - cost.low)
    text = f"{share(saved)} of the FLOPs saved {CHOSEN}; test samples keep {share(kept)}"
    return text, all_of([above(saved, PAPER_SAVES), not_below(kept, KEPT)])


def attention_projections(e: Evidence) -> list[Finding]:
    """C6: with attention projections D2DMoE costs less without significant loss; where not both
    keep their quality, it has the better curve."""
    pairs = (_pair(e, figure) for figure in ("tradeoff", "phases"))
    pair = next((p for p in pairs if p), None)
    if pair is None:
        return [untested("needs D2DMoE with attention projections and without")]
    without, converted = pair
    difference = e.differences(converted, without, "cost").get(KEPT)
    if difference is None:
        note = "not both keep 99 % of dense quality"
        return [beats(e, converted, [without], note)]
    measured = f"{converted} minus {without}: {shown(difference)} of the dense FLOPs {CHOSEN}"
    return [Finding(measured, above(-difference), f"comparisons.csv, {resampling(e, pair)}")]


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
    kept = e.differences(converted, base, "kept").get(KEPT)
    saved = e.differences(converted, base, "saved").get(KEPT)
    if kept is None:
        return untested(f"needs operating points of {base} and {converted}", base)
    kept = Estimate(*(KEPT + np.array(kept)).tolist())
    rivals = list(dict.fromkeys([base, *references]))
    evidence = (
        f"{converted} against the better of {', '.join(rivals)}; {resampling(e, [converted])}"
    )
    if saved is None:
        return Finding(*falls_short(kept, "the model's"), evidence, base)
    measured = f"{share(saved)} of the model's FLOPs saved {CHOSEN} of its quality; "
    measured += f"test samples keep {share(kept)}"
    verdict = all_of([above(saved, STILL_SAVES), not_below(kept, KEPT)])
    return Finding(measured, verdict, evidence, base)
