"""Folders that are named by what lies in them: short, safe, and never shared by two configurations.

    results/data/TASK/fashion-mnist-5d0c71e2/                 a dataset
    results/models/TASK/seed-0/sparsify-a0.004-3f2a91c4/      a stage's model

A name ends in a digest of all options that the content depends on: of a stage its own, those of the
stages before it, and the dataset's. So going back to an earlier configuration finds its results.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from d2dmoe.config.strict import Strict
from d2dmoe.stages import STAGES

LONGEST = 64  # characters of a folder's name
DIGEST = 8  # hexadecimal digits


def plain(cfg: Strict) -> dict[str, Any]:
    """Options as a sorted dict of plain values, whose text form is stable."""
    return dict(sorted(cfg.model_dump(mode="json").items()))


def data_folder(task: str, cfg: Any) -> str:
    """Where a task's prepared dataset lies."""
    source = cfg.source.partition(":")[2].rstrip("/")
    return f"results/data/{task}/{_name([source.rpartition('/')[2]], [plain(cfg)])}"


def stage_folder(task: str, seed: int, options: Sequence[tuple[str, Any]]) -> str:
    """Where a stage's model lies; the options are those of the dataset and of each stage up to it,
    in their order, as plain values by the stages' names."""
    stage, cfg = options[-1]
    hints = (f"{prefix}{_text(cfg[key])}" for key, prefix in STAGES[stage].hint.items())
    return f"results/models/{task}/seed-{seed}/{_name([stage, *hints], list(options))}"


def _name(parts: Sequence[str], content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)).strip("._-")
    cut = readable[: LONGEST - DIGEST - 1].rstrip("._-")
    return f"{cut}-{digest}" if cut else digest


def _text(value: Any) -> str:
    """A value as people write it: 3 for 3.0, qkvo for a list of projections."""
    if isinstance(value, list):
        return "".join(map(str, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
