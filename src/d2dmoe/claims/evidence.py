"""What a claim is decided by: the tables of one task, and which variants play which part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from d2dmoe.bootstrap import Estimate
from d2dmoe.lookup import look_up
from d2dmoe.methods import METHODS
from d2dmoe.tables import ENDS

KEPT = 0.99  # of the dense quality: no significant loss
EMPTY = ["task", "metric", "variant", "rival", "measure"]
MAY_LACK = ("activity", "layers", "comparisons")  # where no method has experts, or none a rival


@dataclass(frozen=True)
class Evidence:
    """The tables of one task of a suite; methods without experts have no rows in some of them."""

    task: str
    tradeoff: pd.DataFrame  # of the task's main metric
    summary: pd.DataFrame  # this too
    comparisons: pd.DataFrame  # and this
    activity: pd.DataFrame
    layers: pd.DataFrame
    patch_load: pd.DataFrame
    roles: dict[str, list[str]]  # figure: variants
    projections: Sequence[str]  # variants that convert attention projections too
    bases: Mapping[str, Mapping[str, Any]]  # compressed models; see `evidence_of`
    elsewhere: Mapping[str, Sequence[str]]  # other suite: figures that it draws of the task
    judged: bool = True  # false: the task is none of the paper's experiments

    def points(self, variant: str) -> pd.DataFrame:
        """A variant's operating points, all seeds."""
        return self.tradeoff[self.tradeoff["variant"] == variant]

    def seeds(self, variants: Sequence[str]) -> int:
        """How many seeds all of these variants have."""
        return len(set.intersection(*({*self.points(v)["seed"]} for v in variants)))

    def cost(self, variant: str) -> Estimate | None:
        """Share of the dense FLOPs without significant loss; None where there is none."""
        return self._summarised(variant, "flops_ratio_at_99")

    def kept(self, variant: str) -> Estimate | None:
        """The quality that test samples keep at that cost; where there is none, at the largest."""
        return self._summarised(variant, "quality_at_99")

    def quality_at(self, variant: str, ratio: float) -> Estimate | None:
        """The quality at a share of the dense FLOPs, of `tables.RATIOS`; None where not every seed
        is that cheap."""
        return self._summarised(variant, f"quality_at_{ratio}")

    def _summarised(self, variant: str, measure: str) -> Estimate | None:
        rows = self.summary[self.summary["variant"] == variant]
        return None if rows.empty else _estimate(*rows.iloc[0][[f"{measure}{e}" for e in ENDS]])

    def differences(self, ours: str, rival: str, measure: str) -> dict[float, Estimate]:
        """Ours minus the rival's, where both have a number: by the budget, or share, of each."""
        rows = self.comparisons[self.comparisons["measure"] == measure]
        found = {}
        for one, other, flipped in ((ours, rival, False), (rival, ours, True)):
            own = rows[(rows["variant"] == one) & (rows["rival"] == other)]
            for row in own.itertuples():
                difference = _estimate(row.difference, row.low, row.high)
                if difference is not None:
                    found[float(row.at)] = -difference if flipped else difference
        return found

    def knob(self, variant: str) -> str:
        """What a variant's operating points differ in."""
        return self.points(variant)["knob"].iloc[0]

    def method(self, variant: str) -> str | None:
        """The method of a variant; None where it has no operating point."""
        rows = self.points(variant)
        return None if rows.empty else rows["method"].iloc[0]

    def of_role(self, figure: str, role: str) -> list[str]:
        """The variants of a figure whose methods have a role, in the legend's order."""
        methods = {v: self.method(v) for v in self.roles.get(figure, [])}
        known = {v: look_up(METHODS, method, "method") for v, method in methods.items() if method}
        return [v for v, method in known.items() if method.role == role]

    @property
    def main(self) -> str | None:
        """The first D2DMoE of the cost–quality figure whose FFNs alone are converted."""
        ours = self.of_role("tradeoff", "ours")
        return next((v for v in ours if v not in self.projections), None)

    def floor(self, variant: str) -> float:
        """`flops_ratio` that is left when no expert runs.

        The cost is linear in the executed share of the FFNs, and of each attention projection.
        """
        layers = self.layers[self.layers["variant"] == variant]
        roles = layers["role"] if "role" in layers else pd.Series("ffn", layers.index)
        share = layers.assign(share=layers["experts"] / layers["num_experts"], role=roles)
        share = share.pivot_table("share", ["seed", "knob_value"], "role")  # mean over layers
        cost = self.points(variant).set_index(["seed", "knob_value"])["flops_ratio"]
        joined = share.join(cost, how="inner")
        known = joined.drop(columns="flops_ratio").assign(floor=1.0)
        fit = np.linalg.lstsq(known.to_numpy(), joined["flops_ratio"].to_numpy(), rcond=None)[0]
        return float(fit[-1])


def _estimate(value: float, low: float, high: float) -> Estimate | None:
    """None where there is no number; an end that is none is infinite."""
    if np.isnan(value):
        return None
    return Estimate(
        float(value),
        -np.inf if np.isnan(low) else float(low),
        np.inf if np.isnan(high) else float(high),
    )


def evidence_of(
    task: str,
    tables: dict[str, pd.DataFrame],
    figures: dict[str, Any],
    metric: str,
    projections: Sequence[str] = (),
    bases: Mapping[str, Mapping[str, Any]] | None = None,
    elsewhere: Mapping[str, Sequence[str]] | None = None,
    judged: bool = True,
) -> Evidence:
    """The evidence of one task.

    Args:
        task: its name.
        tables: tradeoff, summary and, as far as there are any, comparisons, activity, layers and
            patch_load; all tasks'.
        figures: the task's `figures` options, which name the variants of each comparison.
        metric: the task's main metric.
        projections: variants that convert attention projections too.
        bases: by the name of a compressed model, `converted`: the variant that it was converted
            into, and `references`: its rivals for the better dense quality, like itself fine-tuned.
        elsewhere: by the name of another suite, the keys of the `figures` that it draws of the
            task.
        judged: whether claims are judged on the task: they are of the paper's experiments.
    """
    tables = {name: pd.DataFrame(columns=EMPTY) for name in MAY_LACK} | tables
    own = {name: table[table["task"] == task] for name, table in tables.items()}
    for name in ("tradeoff", "summary", "comparisons"):
        own[name] = own[name][own[name]["metric"] == metric]
    roles = {key: value for key, value in figures.items() if isinstance(value, list)}
    if not (figures.get("load_maps") or {}).get("foreground"):
        own["patch_load"] = pd.DataFrame()
    return Evidence(
        task,
        **own,
        roles=roles,
        projections=projections,
        bases=bases or {},
        elsewhere=elsewhere or {},
        judged=judged,
    )
