"""Claims that one curve of quality over cost is above another: C2 (baselines), C3 (sparser bases),
C5 (what routers predict) and C8 (size of the experts, activation function).
"""

import numpy as np

from d2dmoe.claims.evidence import Evidence
from d2dmoe.claims.findings import (
    BUDGETS,
    Finding,
    beats,
    better,
    gaps,
    qualities,
    untested,
    verdict_of,
)
from d2dmoe.methods import METHODS
from d2dmoe.tables import area


def baselines(e: Evidence) -> list[Finding]:
    """C2: D2DMoE of the FFNs alone beats each baseline of the cost–quality figure."""
    rivals = e.of_role("tradeoff", "baseline")
    if e.main is None or not rivals:
        return [untested("needs a D2DMoE variant of the FFNs alone, and a baseline")]
    compared = {e.method(v) for v in rivals}
    known = {name: m.rival for name, m in METHODS.items() if m.role == "baseline"}
    absent = [rival for name, rival in known.items() if name not in compared]
    note = f"no {', no '.join(absent)} here" if absent else f"all {_count(len(known))} baselines"
    return [beats(e, e.main, rivals, note)]


def sparser_bases(e: Evidence) -> list[Finding]:
    """C3: of bases by their measured sparsity, each converts better than the next denser one."""
    named = e.roles.get("sparsity_levels") or e.roles.get("base_sparsity", [])
    active = _active(e)
    ordered = sorted((v for v in named if v in active), key=lambda v: -active[v])  # densest first
    if len(ordered) < 2:
        return [untested("needs two sparsity levels")]
    pairs = zip(ordered, ordered[1:], strict=False)
    holds = all(better(list(gaps(e, sparser, denser).values())) for denser, sparser in pairs)
    areas = ", ".join(f"{v}: {e.mean(v, area):.3f} at {active[v]:.0%} active" for v in ordered)
    measured = f"area under the curve {areas}"
    return [Finding(measured, verdict_of(holds), qualities(e, ordered, BUDGETS))]


def router_targets(e: Evidence) -> list[Finding]:
    """C5: the first variant of its figure, which regresses norms, beats the others, which classify;
    only with the same sparse base and selection rule do they compare."""
    names = e.of_role("routers", "ours")  # a MoEfication has another base
    rivals = [v for v in names[1:] if e.knob(v) == e.knob(names[0])]
    if not rivals:
        return [untested("needs routers of both kinds for one base and one selection rule")]
    return [beats(e, names[0], rivals, "same base, same selection rule")]


def expert_sizes(e: Evidence) -> list[Finding]:
    """C8: the more experts, the larger the area under the curve; and a ReLU and a GELU base, where
    both are run, save cost without significant loss."""
    names, activations = (e.roles.get(key, []) for key in ("expert_sizes", "activations"))
    if len(names) < 2:
        return [untested("needs two expert sizes")]
    sizes = {v: e.layers.loc[e.layers["variant"] == v, "num_experts"].max() for v in names}
    ordered = sorted(names, key=lambda v: sizes[v])  # fewest experts, the largest ones, first
    areas = [e.mean(v, area) for v in ordered]
    measured = ", ".join(
        f"{sizes[v]} experts: {a:.4f}" for v, a in zip(ordered, areas, strict=True)
    )
    evidence = "summary.csv, area under the curve"
    if not activations:
        return [Finding(measured, verdict_of(areas == sorted(areas)), f"{evidence}; sizes only")]
    kept = {v: e.saving_cost(v) for v in activations}
    bases = ", ".join(
        f"{v}: {'not every seed' if np.isnan(ratio) else f'{ratio:.2f}'}"
        for v, ratio in kept.items()
    )
    works = all(ratio < 1 for ratio in kept.values())  # false where 99 % is never reached
    measured += f"; of the cost for >= 99 % of dense quality {bases}"
    return [Finding(measured, verdict_of(areas == sorted(areas) and works), evidence)]


def _count(number: int) -> str:
    """A small number in words."""
    words = ("no", "one", "two", "three", "four", "five", "six")
    return words[number] if number < len(words) else str(number)


def _active(e: Evidence) -> dict[str, float]:
    """Share of active hidden neurons over all tokens, layers and seeds, by the variant."""
    if e.activity.empty:
        return {}
    of_ffn = e.activity["active"] * e.activity["tokens"] / e.activity["d_ff"]
    tokens = e.activity.groupby("variant")["tokens"].sum()
    return (of_ffn.groupby(e.activity["variant"]).sum() / tokens).to_dict()
