"""Of what a conversion's cost is made: FFNs, routers, attention, and what is before and after.

No table has these parts, but together tables and sizes tell them. Cost is linear in the experts
executed, so its slope is a layer's cost per expert; what a model costs without experts beyond what
the dense one costs without its FFNs is the routers'. Where all samples have as many tokens, the
dense model's sizes tell what its attention costs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pandas import DataFrame

from d2dmoe.formulas import ffn_flops

EXACT = 1e-6  # relative deviation of what is equal, in tables of ten digits
FFN = "ffn"  # the role of FFNs; others are attention's projections


@dataclass(frozen=True)
class Sizes:
    """Of the dense model of a task."""

    layers: int
    d_model: int
    d_ff: int
    gated: bool
    d_q: int  # width of all queries, and of what the output projection reads
    d_kv: int  # width of all keys

    def width(self, role: str) -> int:
        """Of the keys, queries or values that a projection makes or reads."""
        return self.d_kv if role in ("k", "v") else self.d_q


@dataclass(frozen=True)
class Fit:
    """A conversion's cost as its operating points tell it, in FLOPs per sample."""

    each: dict[str, float]  # of an expert that every token runs, by role
    remaining: float  # where no expert runs
    experts: dict[str, float]  # of all layers, by role
    layers: dict[str, int]  # by role

    @property
    def ffns(self) -> float:
        """What the FFNs cost where all their experts run."""
        return self.each[FFN] * self.experts[FFN]


def fit(points: DataFrame, layers: DataFrame) -> Fit | None:
    """A variant's costs.

    Args:
        points: its rows of the trade-off, of one metric.
        layers: its rows of executed experts.

    Returns:
        None where its operating points do not tell, or its cost is not linear.
    """
    if layers.empty or FFN not in set(layers["role"]):
        return None
    keys = ["seed", "knob_value"]
    sums = layers.groupby([*keys, "role"])[["experts", "num_experts"]].sum()
    cost = points.set_index(keys)["flops"]
    design = sums["experts"].unstack("role").reindex(cost.index).assign(remaining=1.0).dropna()
    flops = cost[design.index]
    if design.empty or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    found = np.linalg.lstsq(design, flops, rcond=None)[0]
    if np.abs(design.to_numpy() @ found - flops).max() > EXACT * flops.max():
        return None
    *each, remaining = found
    roles = [str(role) for role in design.columns[:-1]]
    experts = sums["num_experts"].unstack("role").iloc[0]
    return Fit(
        dict(zip(roles, map(float, each), strict=True)),
        float(remaining),
        {role: float(experts[role]) for role in roles},
        {role: int(layers.loc[layers["role"] == role, "layer"].nunique()) for role in roles},
    )


def split(own: Fit, dense: float, ffns: float, sizes: Sizes | None) -> dict[str, Any]:
    """The parts of a conversion's cost.

    Args:
        own: what its operating points tell.
        dense: the dense model's cost.
        ffns: what the dense model's FFNs cost.
        sizes: the dense model's, where they are known.

    Returns:
        `each`, FLOPs per sample of an expert that every token runs, by role; `fixed`, those of the
        other parts by their names.
    """
    parts = {"each": own.each}
    if abs(own.ffns - ffns) > EXACT * ffns:  # converted from another model
        return parts | {"fixed": {"all else": own.remaining}}
    roles = {role: n for role, n in own.layers.items() if role != FFN}
    if roles and sizes is None:
        return parts | {"fixed": {"all else": own.remaining}}
    other = _other(dense - ffns, ffns, sizes)
    router = own.remaining - (dense - ffns)
    if sizes is not None:
        replaced = sum(  # what the projections cost in the dense model
            2 * n * _tokens(ffns, sizes) * sizes.d_model * sizes.width(role)
            for role, n in roles.items()
        )
        router += replaced
        other[next(iter(other))] -= replaced
    if router < -EXACT * dense:  # sizes are of another model
        return parts | {"fixed": {"all else": own.remaining}}
    return parts | {"fixed": {"routers": max(router, 0.0)} | other}


def split_dense(dense: float, ffns: float, sizes: Sizes | None) -> dict[str, Any]:
    """The parts of the dense model's cost."""
    return {"each": {}, "fixed": {"FFNs": ffns} | _other(dense - ffns, ffns, sizes)}


def _other(rest: float, ffns: float, sizes: Sizes | None) -> dict[str, float]:
    """What the dense model costs beside its FFNs; the first part holds the attention."""
    together = {"attention, embedding and head": rest}
    if sizes is None:
        return together
    tokens = _tokens(ffns, sizes)
    projections = 2 * sizes.d_model * (2 * sizes.d_q + 2 * sizes.d_kv)
    pairs = 2 * 2 * tokens * sizes.d_q  # scores, and their products with the values
    attention = tokens * sizes.layers * (projections + pairs)
    # Attention grows with the square of the length, so that of the mean length is not the mean.
    whole = abs(tokens - round(tokens)) <= EXACT * tokens
    if not whole or attention > rest * (1 + EXACT):
        return together
    return {"attention": attention, "embedding and head": rest - attention}


def _tokens(ffns: float, sizes: Sizes) -> float:
    """Tokens of a sample, by what its FFNs cost."""
    return ffns / (sizes.layers * ffn_flops(sizes.d_model, sizes.d_ff, sizes.gated))
