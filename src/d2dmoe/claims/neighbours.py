"""What the papers of neighbouring methods claim, of the methods as they are here: of each the first
variant in the legend of their figure."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from d2dmoe.claims.evidence import KEPT, Evidence
from d2dmoe.claims.findings import (
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
from d2dmoe.lookup import look_up
from d2dmoe.methods import METHODS

FIGURE = "neighbours"
TEAL_SAVES = 0.4  # of the model, the less of "40-50 %"
CATS_RUNS = 0.5  # of an FFN's channels
CMOE_RUNS = 0.75  # of the neurons
FACTORLLM_KEEPS = 0.85  # of the dense quality
FASTER = 0.7  # of the cost, the largest that the summary has which is 30 % faster or more
SEER_LEAVES = 0.75  # of the experts
DYN_ADAPTER_SAVES = 0.5  # of the FLOPs
ADAPMOE_SKIPS = 0.25  # of the experts that top-k executes
LD_PRUNER_SAVES = 0.349  # of the time


def channel_thresholds(e: Evidence) -> list[Finding]:
    """N1: CHESS is above CATS; what they cost is the density alone."""
    return _better(e, "chess", "cats", "their cost is a line in the density")


def input_thresholds(e: Evidence) -> list[Finding]:
    """N2: TEAL is above CATS."""
    return _better(e, "teal", "cats", "neither trains anything")


def whole_model_sparsity(e: Evidence) -> list[Finding]:
    """N3: TEAL saves 40 % of the cost without significant loss."""
    note = "what it cannot skip, embeddings and classifier, counts too"
    return _first_of(e, "teal", lambda v: _saves(e, v, 1 - TEAL_SAVES, note))


def half_of_the_channels(e: Evidence) -> list[Finding]:
    """N4: CATS has no significant loss at half of the FFNs' channels."""
    return _first_of(e, "cats", lambda v: _keeps_at(e, v, CATS_RUNS, "channels"))


def most_of_the_neurons(e: Evidence) -> list[Finding]:
    """N5: CMoE, which trains nothing, has none at three quarters of its experts."""
    return _first_of(e, "cmoe", lambda v: _keeps_at(e, v, CMOE_RUNS, "experts"))


def experts_without_training(e: Evidence) -> list[Finding]:
    """N6: CMoE, which trains nothing, is above MoEfication, whose routers are trained."""
    return _better(e, "cmoe", "moefication", "of MoEfication both base and routers are trained")


def few_experts(e: Evidence) -> list[Finding]:
    """N7: FactorLLM keeps 85 % of the quality where it is 30 % faster, by FLOPs."""

    def test(variant: str) -> Finding:
        quality = e.quality_at(variant, FASTER)
        if quality is None:
            return untested(f"not every seed of {variant} has a point at {FASTER} of the cost")
        text = f"{variant} keeps {share(quality)} of dense quality at {FASTER} of the cost"
        note = "cost stands for time: 1 / 1.3 = 0.77"
        verdict = above(quality, FACTORLLM_KEEPS)
        return Finding(text, verdict, f"summary.csv, {resampling(e, [variant])}; {note}")

    return _first_of(e, "factorllm", test)


def fewer_experts(e: Evidence) -> list[Finding]:
    """N8: SEER-MoE without a quarter of D2DMoE's experts has no significant loss."""
    ours = e.of_role(FIGURE, "ours")
    seer = [v for v in e.roles.get(FIGURE, []) if e.method(v) == "seer"]
    left = {v: _experts(e, v) / _experts(e, ours[0]) for v in seer} if ours else {}
    variant = next((v for v, part in left.items() if part <= SEER_LEAVES), None)
    if variant is None:
        return [untested("needs D2DMoE and a SEER-MoE without a quarter of its experts")]
    cost, kept = e.cost(variant), e.kept(variant)
    if kept is None:
        return [untested(f"{variant} is not measured")]
    note = f"{left[variant]:.0%} of {ours[0]}'s experts are left"
    evidence = f"summary.csv, {resampling(e, [variant])}; {note}"
    if cost is None:
        return [Finding(*falls_short(kept), evidence)]
    text = f"{variant} keeps {share(kept)} of dense quality at {share(cost)} of the cost"
    return [Finding(text, not_below(kept, KEPT), evidence)]


def adapters_and_exits(e: Evidence) -> list[Finding]:
    """N9: Dyn-Adapter saves half of the FLOPs without significant loss."""
    note = "adapters and all heads passed count"
    return _first_of(e, "dyn_adapter", lambda v: _saves(e, v, 1 - DYN_ADAPTER_SAVES, note))


def existing_approaches(e: Evidence) -> list[Finding]:
    """N10: D2DMoE is above each of the methods that train nothing."""
    ours = e.of_role(FIGURE, "ours")
    methods = {v: e.method(v) for v in e.roles.get(FIGURE, [])}
    free = [v for v, m in methods.items() if m and look_up(METHODS, m, "method").training_free]
    if not ours or not free:
        return [untested("needs D2DMoE, and a method that trains nothing")]
    return [beats(e, ours[0], free, "these train nothing beyond the model that they begin with")]


def fewer_than_top_k(e: Evidence) -> list[Finding]:
    """N11: where each keeps its quality, AdapMoE's gating executes a quarter fewer experts than
    D2DMoE by top-k. An expert costs the same in both, and so does what is left without any."""
    top_k = next((v for v in e.of_role(FIGURE, "ours") if e.knob(v) == "top_k"), None)
    gated = _first(e, "adapmoe")
    if top_k is None or gated is None:
        return [untested("needs AdapMoE, and D2DMoE by top-k")]
    cost, difference = e.cost(top_k), e.differences(gated, top_k, "cost").get(KEPT)
    if cost is None or difference is None:
        return [untested("not both keep 99 % of dense quality")]
    least = ADAPMOE_SKIPS * (cost.value - e.floor(top_k))
    text = f"{gated} minus {top_k}: {shown(difference)} of the dense FLOPs where each keeps 99 %"
    note = f"{least:.2%} are a quarter of what {top_k}'s experts cost there"
    source = f"comparisons.csv, {resampling(e, [gated, top_k])}; {note}"
    return [Finding(f"{text}, against {-least:+.2%}", above(-difference, least), source)]


def experts_of_one_group(e: Evidence) -> list[Finding]:
    """N12: SAM, whose experts of a token are of one group, is above D2DMoE, whose are of any."""
    ours, grouped = e.of_role(FIGURE, "ours"), _first(e, "sam")
    if not ours or grouped is None:
        return [untested("needs D2DMoE and a variant of the method sam")]
    return [beats(e, grouped, ours[:1], "at more than a whole group costs, what it gives counts")]


def removed_operators(e: Evidence) -> list[Finding]:
    """N13: LD-Pruner saves a third of the time, by FLOPs, without significant loss."""
    note = "cost stands for time"
    return _first_of(e, "ldpruner", lambda v: _saves(e, v, 1 - LD_PRUNER_SAVES, note))


def _first_of(e: Evidence, method: str, test: Callable[[str], Finding]) -> list[Finding]:
    """What the test of the first variant of a method finds."""
    variant = _first(e, method)
    return [untested(f"no variant of the method {method}") if variant is None else test(variant)]


def _first(e: Evidence, method: str) -> str | None:
    """The first variant of a method in the legend of the figure."""
    return next((v for v in e.roles.get(FIGURE, []) if e.method(v) == method), None)


def _better(e: Evidence, method: str, than: str, note: str) -> list[Finding]:
    """Whether the first variant of a method is above that of another; see `beats`."""
    one, other = _first(e, method), _first(e, than)
    if one is None or other is None:
        return [untested(f"needs variants of the methods {method} and {than}")]
    return [beats(e, one, [other], note)]


def _saves(e: Evidence, variant: str, most: float, note: str) -> Finding:
    """Whether a variant keeps 99 % of the quality at a share of the cost, or less; the cost is that
    where validation samples keep it."""
    cost, kept = e.cost(variant), e.kept(variant)
    if kept is None:
        return untested(f"{variant} is not measured")
    evidence = f"summary.csv, {resampling(e, [variant])}; {note}"
    if cost is None:
        return Finding(*falls_short(kept), evidence)
    text = f"{variant} keeps {share(kept)} of dense quality at {share(cost)} of the cost"
    verdict = all_of([above(-cost, -most), not_below(kept, KEPT)])
    return Finding(f"{text}, against {most:.1%}", verdict, evidence)


def _keeps_at(e: Evidence, variant: str, part: float, units: str) -> Finding:
    """Whether a variant keeps 99 % of the quality where a share of its units runs, or fewer."""
    most = _cost_of(e, variant, part)
    if most is None:
        return untested(f"{variant} has no points on both sides of {part:.0%} of its {units}")
    return _saves(e, variant, most, f"{most:.1%} is its cost where {part:.0%} of its {units} run")


def _cost_of(e: Evidence, variant: str, part: float) -> float | None:
    """The cost where a share of a variant's units runs: the mean over layers, or where the table of
    layers has none of it the operating point itself. None: no point runs as few, or as many."""
    costs = e.points(variant).groupby("knob_value")["flops_ratio"].mean()
    layers = e.layers[e.layers["variant"] == variant]
    shares = (layers["experts"] / layers["num_experts"]).groupby(layers["knob_value"]).mean()
    if shares.empty:
        shares = costs.index.to_series()
    both = pd.DataFrame({"share": shares, "cost": costs}).dropna().sort_values("share")
    if both.empty or not both["share"].iloc[0] <= part <= both["share"].iloc[-1]:
        return None
    return float(np.interp(part, both["share"], both["cost"]))


def _experts(e: Evidence, variant: str) -> float:
    """The mean of a layer's experts; NaN where there are none."""
    return float(e.layers.loc[e.layers["variant"] == variant, "num_experts"].mean())
