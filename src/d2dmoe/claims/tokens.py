"""Claims about differences between tokens and layers: C4 (selection per token) and C7 (where the
compute goes).
"""

import numpy as np
import pandas as pd

from d2dmoe.bootstrap import Estimate, estimate, sample_counts, sums
from d2dmoe.claims.evidence import Evidence
from d2dmoe.claims.findings import (
    CONTRADICTED,
    Finding,
    above,
    all_of,
    beats,
    shown,
    untested,
    verdict_of,
)
from d2dmoe.methods.conversion.options import D2DMoEVariant, MoEficationVariant

VARIES = 0.1  # standard deviation / mean: below it, tokens are alike
DIFFERS = 1.1  # largest / smallest share of executed experts of the layers


def dynamic_selection(e: Evidence) -> list[Finding]:
    """C4: active neurons vary between tokens, and dynamic-k beats top-k with the same routers."""
    rules = {e.knob(v): v for v in reversed(e.of_role("selection_rules", "ours"))}
    dynamic, static = rules.get(D2DMoEVariant.rule), rules.get(MoEficationVariant.rule)
    if dynamic is None or static is None:
        return [untested("needs one router with dynamic_k and with top_k")]
    activity = e.activity[e.activity["variant"] == dynamic]
    if activity.empty:
        return [untested(f"no counts of active neurons of {dynamic}")]
    spread = _spread_of_active(activity)
    finding = beats(e, dynamic, [static], "same model, same routers")
    varies = f"active neurons per token vary by {spread:.0%} (standard deviation / mean)"
    verdict = finding.verdict if spread > VARIES else CONTRADICTED
    return [finding._replace(measured=f"{varies}; {finding.measured}", verdict=verdict)]


def where_compute_goes(e: Evidence) -> list[Finding]:
    """C7: objects in images get more experts than the background, and layers differ."""
    table = e.patch_load
    layers = e.layers[e.layers["variant"] == e.main]
    if table.empty or layers.empty:
        return [untested("no load maps with a known foreground")]
    on_object, background = table["object_share"] >= 0.5, table["object_share"] == 0
    if not (on_object.any() and background.any()):
        return [untested("no patch on an object, or none on the background")]
    difference = _difference_of_loads(table, on_object, background)
    values = sorted(layers["knob_value"].unique())
    value = values[len(values) // 2]
    share = layers[layers["knob_value"] == value].eval("experts / num_experts")
    by_layer = share.groupby(layers["layer"]).mean()
    measured = (
        f"{table.loc[on_object, 'load'].mean():.1%} of the experts on object patches, "
        f"{table.loc[background, 'load'].mean():.1%} on background: {shown(difference)}; "
        f"{by_layer.min():.0%} to {by_layer.max():.0%} by layer at {value}"
    )
    differs = verdict_of(by_layer.max() > DIFFERS * by_layer.min())
    evidence = "patch_load.csv, 95 % by a bootstrap over its images, of one seed; layers.csv"
    return [Finding(measured, all_of([above(difference), differs]), evidence)]


def _difference_of_loads(
    table: pd.DataFrame, on_object: pd.Series, background: pd.Series
) -> Estimate:
    """Mean load of the patches on objects minus that of the background's, images resampled."""
    of_images = pd.DataFrame(
        {
            f"{name}{kind}": of_kind * values
            for name, of_kind in (("object", on_object), ("background", background))
            for kind, values in (("_load", table["load"]), ("_patches", 1.0))
        }
    ).groupby(table["image"])
    values = of_images.sum().to_numpy().T  # [4, images]
    counts = sample_counts(values.shape[1], "images")
    load, patches, other_load, other_patches = sums(counts, values).T
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = load / patches - other_load / other_patches
    return estimate(np.where(np.isnan(gaps), 0.0, gaps))  # resamples without one of the two


def _spread_of_active(activity: pd.DataFrame) -> float:
    """Standard deviation over tokens divided by the mean, averaged over layers and seeds."""

    def of_layer(rows: pd.DataFrame) -> float:
        mean = np.average(rows["active"], weights=rows["tokens"])
        variance = np.average((rows["active"] - mean) ** 2, weights=rows["tokens"])
        return float(np.sqrt(variance) / mean)

    return float(np.mean([of_layer(rows) for _, rows in activity.groupby(["seed", "layer"])]))
