"""Every configuration that is shipped, as the workflow reads it."""

from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config

ROOT = Path(__file__).parents[2]

SHIPPED = {
    "config.yaml": ["config.yaml"],
    "paper.yaml": ["configs/paper.yaml"],
    "reference.yaml": ["config.yaml", "configs/reference.yaml"],  # the second says what differs
    "tiny.yaml": ["tests/workflow/tiny.yaml"],
}
assert {path.name for path in ROOT.glob("configs/*.yaml")} < SHIPPED.keys()


def shipped(name: str) -> dict[str, Any]:
    """Its values; of seeds the last, from which the others differ in nothing but their number."""
    raw: dict[str, Any] = {}
    for path in SHIPPED[name]:
        update_config(raw, yaml.safe_load((ROOT / path).read_text()))
    for own in (raw, *raw["tasks"].values()):
        own |= {"seeds": own["seeds"][-1:]} if "seeds" in own else {}
    return raw
