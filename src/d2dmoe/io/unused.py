"""Results that no variant of the present configuration leads to."""

import shutil
from collections.abc import Iterable
from pathlib import Path

ROOTS = ("models/*/seed-*", "data/*")  # of results/: what holds folders named by their content
BESIDE = ("logs", "benchmarks/jobs")  # of results/: where logs and records lie as these do


def find_unused(results: Path, used: Iterable[str]) -> list[Path]:
    """Folders below `results` that are not among the used ones, with their logs and records.

    Args:
        results: the folder of all results.
        used: the folders that are used, relative to the parent of `results`.
    """
    kept = {Path(folder).relative_to(results.name) for folder in used}
    found = []
    for place in (results, *(results / name for name in BESIDE)):
        for root in ROOTS:
            folders = (path for path in place.glob(f"{root}/*") if path.is_dir())
            found += [path for path in folders if path.relative_to(place) not in kept]
    return sorted(found)


def remove(folders: Iterable[Path]) -> None:
    """Delete folders with all that is in them; of one that is a link, the link alone."""
    for folder in folders:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


def report(folders: Iterable[Path], removed: bool) -> str:
    """The folders, one a line, and what can be done about them."""
    lines = [str(folder) for folder in folders]
    if not lines:
        return "every folder of results/ belongs to a variant of this configuration"
    if removed:
        return "\n".join([*lines, f"removed {len(lines)} folders"])
    rest = f"{len(lines)} folders are unused; `snakemake remove_unused` deletes them"
    return "\n".join([*lines, rest])
