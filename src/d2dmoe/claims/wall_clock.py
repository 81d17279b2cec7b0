"""C9: the wall-clock time of a layer falls linearly with its executed experts."""

import numpy as np
import pandas as pd

from d2dmoe.claims.findings import Finding, untested, verdict_of
from d2dmoe.tables import of_first_layer

LINEAR = 0.98  # R² of the line through the medians, from which on time counts as linear
SHARES = 3  # that a line needs at least to be tested


def layer_time(table: pd.DataFrame) -> Finding:
    """C9 by the first layer of `layer.csv` or `cpu.csv`, in its first number format and mask.

    Beside the line, what decides nothing is measured too: how many times faster than the fastest
    dense form dynamic-k is at each share, and from which share on it is not faster.
    """
    rows = table[of_first_layer(table)]
    for column in ("dtype", "mask"):
        rows = rows[rows[column] == rows[column].iloc[0]]
    place = _place(rows.iloc[0])
    points = rows[rows["backend"] == "dynamic_k"].sort_values("fraction")
    dense = rows[rows["backend"].str.startswith("dense_")]
    if len(points) < SHARES:
        return untested(f"needs dynamic-k at {SHARES} shares", place)
    share, ms = points["fraction"].to_numpy(), points["median_ms"].to_numpy()
    fastest = dense.loc[dense["median_ms"].idxmin()]
    slope, start = np.polyfit(share, ms, 1)
    fit = np.corrcoef(share, ms)[0, 1] ** 2
    factors = ", ".join(
        f"{fastest['median_ms'] / t:.2f} at {x:.1%}" for x, t in zip(share, ms, strict=True)
    )
    measured = (
        f"{start:.3g} ms + {slope:.3g} ms × executed share, R² {fit:.4f}; "
        f"times as fast as dense: {factors}; {_break_even(share, ms - fastest['median_ms'])}"
    )
    dense_time = f"dense: {fastest['backend']}, {fastest['median_ms']:.3g} ms"
    holds = bool(slope > 0 and fit >= LINEAR)
    evidence = f"{dense_time}; linear from R² {LINEAR} on"
    return Finding(measured, verdict_of(holds), evidence, place)


def _place(row: pd.Series) -> str:
    layer = f"{row['num_experts']} × {row['expert_size']}, {row['activation']}"
    return f"{layer}, {row['tokens']} tokens, {row['dtype']}, {row['mask']} mask, {row['device']}"


def _break_even(share: np.ndarray, slower_ms: np.ndarray) -> str:  # ascending
    """The least share at which dynamic-k is not faster, by lines between those measured."""
    lost = np.flatnonzero(slower_ms >= 0)
    if not len(lost):
        return "faster at all shares"
    first = lost[0]
    if first == 0:
        return "not faster even at the least share"
    (x0, x1), (y0, y1) = share[first - 1 : first + 1], slower_ms[first - 1 : first + 1]
    return f"break-even at {x0 - y0 * (x1 - x0) / (y1 - y0):.1%}"
