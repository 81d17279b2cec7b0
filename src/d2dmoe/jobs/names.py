"""What a person calls a job: its task, seed and variants instead of folders with digests."""

from collections.abc import Iterable, Mapping
from typing import Any

MOST = 3  # variants named; of the others the number is said


def variants_by_folder(models: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The variants that a stage's folder belongs to.

    Args:
        models: rows of `results/models.csv`.
    """
    found: dict[str, list[str]] = {}
    for row in models:
        found.setdefault(row["folder"], []).append(row["variant"])
    return {folder: _shortened(variants) for folder, variants in found.items()}


def name_of(wildcards: Mapping[str, str], variants: Mapping[str, str]) -> str:
    """A job's name, as "vision · seed 0 · d2dmoe, top_k · test".

    Args:
        wildcards: of the job's paths.
        variants: by folder, of `variants_by_folder`.
    """
    values = dict(wildcards)
    task, seed, folder = (values.pop(key, "") for key in ("task", "seed", "folder"))
    values.pop("dataset", None)
    own = variants.get(f"results/models/{task}/seed-{seed}/{folder}", folder)
    parts = [task, f"seed {seed}" if seed else "", own, *values.values()]
    return " · ".join(part.strip("/") for part in parts if part)


def _shortened(variants: list[str]) -> str:
    more = len(variants) - MOST
    return ", ".join(variants[:MOST]) + (f" and {more} more" if more > 0 else "")
