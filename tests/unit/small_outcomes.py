"""Outcomes of samples as evaluations leave them, of methods whose quality is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SAMPLES = 400
FLOPS = 1000.0  # of the dense model
Curve = Sequence[tuple[float, float]]  # share of the dense FLOPs, and of the samples that are right


def outcomes(curve: Curve, samples: int = SAMPLES, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Of samples of rising difficulty: those up to a share are right; at each point of a curve."""
    difficulty = (np.arange(samples) * 0.618 + shift) % 1  # evenly spread, in no order
    correct = np.stack([difficulty < quality for _cost, quality in curve])
    flops = np.stack([np.full(samples, cost * FLOPS) for cost, _quality in curve])
    return {
        "correct": correct.astype(np.uint8),
        "loss": np.stack([np.full(samples, 2 - quality) for _cost, quality in curve], dtype="f4"),
        "flops": flops.astype(np.float32),
        "targets": np.ones(samples, np.int32),
    }


def save(folder: Path, variant: str, seed: int, **splits: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write them; returns the entry of `significance.statistics`."""
    entry: dict[str, Any] = {"task": "t", "method": "m", "variant": variant, "seed": seed}
    entry["reference"] = variant.startswith("dense")
    for split, found in splits.items():
        path = folder / f"{variant}-{seed}-{split}.safetensors"
        save_file(found, path)
        entry[split] = str(path)
    return entry


def entries(folder: Path, curves: dict[str, Curve], seeds: Sequence[int] = (0,), **options):
    """Entries of methods whose validation and test samples are alike."""
    return [
        save(folder, name, seed, validation=found, test=found)
        for name, curve in curves.items()
        for seed in seeds
        for found in [outcomes(curve, **options)]
    ]
