"""Every configuration that is shipped is valid, and the schema for editors is up to date."""

from pathlib import Path

import pytest
import yaml

from d2dmoe.config.experiment import load_config
from d2dmoe.config.schema import schema_text

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "config.yaml", *ROOT.glob("configs/*.yaml"), ROOT / "tests/workflow/tiny.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_a_shipped_configuration_is_valid(path):
    assert load_config(yaml.safe_load(path.read_text()), ROOT).tasks


def test_the_schema_equals_the_models():
    """If not: python -m d2dmoe.config.schema"""
    assert (ROOT / "config.schema.json").read_text() == schema_text()


def test_moefication_and_the_dense_reference_get_the_same_passes_over_the_data():
    for path in SHIPPED:
        for task in load_config(yaml.safe_load(path.read_text()), ROOT).tasks.values():
            totals = {s.sparsify.epochs + s.router.epochs for s in map(task.stages, task.variants)}
            assert totals == {task.sparsify.epochs + task.router.epochs}
