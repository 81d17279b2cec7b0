"""Claims that one curve of quality over cost is above another: C2 (baselines), C3 (sparser bases),
C5 (what routers predict) and C8 (size of the experts, activation function).
"""

from d2dmoe.claims.evidence import Evidence
from d2dmoe.claims.findings import (
    NOT_TESTED,
    Finding,
    above,
    across,
    all_of,
    beats,
    falls_short,
    gaps,
    resampling,
    share,
    shown,
    untested,
)
from d2dmoe.methods import METHODS

SPARSER = 0.75  # of the denser base's active neurons: more than that is no manipulation of sparsity


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
    """C3: of bases by their measured sparsity, each converts better than the next denser one, of
    those whose active neurons differ by a quarter at least."""
    named = e.roles.get("sparsity_levels") or e.roles.get("base_sparsity", [])
    active = _active(e)
    ordered = sorted((v for v in named if v in active), key=lambda v: -active[v])  # densest first
    if len(ordered) < 2:
        return [untested("needs two sparsity levels")]
    shares = ", ".join(f"{v}: {active[v]:.1%} active" for v in ordered)
    levels = ordered[:1]
    levels += [v for v in ordered[1:] if active[v] <= SPARSER * active[levels[-1]]]
    apart = f"compared are bases with at most {SPARSER:.0%} as many active neurons: {shares}"
    if len(levels) < 2:
        return [untested(f"sparsity differs too little; {apart}")]
    pairs = list(zip(levels[1:], levels, strict=False))
    found = {pair: e.differences(*pair, "quality") for pair in pairs}
    measured = "; ".join(gaps(*pair, own) for pair, own in found.items())
    verdict = all_of([across(own.values()) for own in found.values()])
    return [Finding(measured, verdict, f"comparisons.csv, {resampling(e, levels)}; {apart}")]


def router_targets(e: Evidence) -> list[Finding]:
    """C5: the first variant of its figure, which regresses norms, beats the others, which classify;
    only with the same sparse base and selection rule do they compare."""
    names = e.of_role("routers", "ours")  # a MoEfication has another base
    rivals = [v for v in names[1:] if e.knob(v) == e.knob(names[0])]
    if not rivals:
        return [untested("needs routers of both kinds for one base and one selection rule")]
    return [beats(e, names[0], rivals, "same base, same selection rule")]


def expert_sizes(e: Evidence) -> list[Finding]:
    """C8: the more experts, the better the curve on the costs that it has in common with that of
    fewer; and a ReLU and a GELU base, where both are run, save cost without significant loss."""
    names, activations = (e.roles.get(key, []) for key in ("expert_sizes", "activations"))
    if len(names) < 2:
        return [untested("needs two expert sizes")]
    sizes = {v: e.layers.loc[e.layers["variant"] == v, "num_experts"].max() for v in names}
    ordered = sorted(names, key=lambda v: sizes[v])  # fewest experts, the largest ones, first
    texts, verdicts = [], []
    for larger, smaller in zip(ordered, ordered[1:], strict=False):
        found = e.differences(smaller, larger, "mean quality")
        verdicts.append(across(found.values()))
        text = ", ".join(map(shown, found.values())) or "no costs in common"
        texts.append(f"{sizes[smaller]} minus {sizes[larger]} experts: {text}")
    evidence = f"comparisons.csv, {resampling(e, ordered)}; over the costs that both have"
    for base in activations:
        text, verdict = _saves(e, base)
        texts.append(text)
        verdicts.append(verdict)
    note = "" if activations else "; sizes only"
    return [Finding("; ".join(texts), all_of(verdicts), f"{evidence}{note}")]


def _saves(e: Evidence, variant: str) -> tuple[str, str]:
    """Whether a variant saves cost at all without significant loss."""
    cost, kept = e.cost(variant), e.kept(variant)
    if kept is None:
        return f"{variant}: not measured", NOT_TESTED
    if cost is None:
        text, verdict = falls_short(kept)
        return f"{variant}: {text}", verdict
    return f"{variant}: {share(cost)} of the cost for 99 % of dense quality", above(-cost, -1.0)


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
