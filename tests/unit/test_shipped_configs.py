"""Every configuration that is shipped is valid, and the schema for editors is up to date."""

from pathlib import Path

import pytest
import yaml

from d2dmoe.config.experiment import load_config
from d2dmoe.config.schema import schema_text
from d2dmoe.config.task import TaskConfig
from d2dmoe.config.variants import ConversionVariant
from d2dmoe.plan.lineage import stage_configs

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "config.yaml", *ROOT.glob("configs/*.yaml"), ROOT / "tests/workflow/tiny.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_a_shipped_configuration_is_valid(path):
    assert load_config(yaml.safe_load(path.read_text()), ROOT).tasks


def test_the_schema_equals_the_models():
    """If not: python -m d2dmoe.config.schema"""
    assert (ROOT / "config.schema.json").read_text() == schema_text()


def shipped_tasks() -> list[tuple[str, TaskConfig]]:
    """Every task of every configuration, and what it is called in messages."""
    configs = {path.name: load_config(yaml.safe_load(path.read_text()), ROOT) for path in SHIPPED}
    return [(f"{file} {name}", t) for file, c in configs.items() for name, t in c.tasks.items()]


def trained_epochs(task: TaskConfig, variant: str) -> float:
    """Passes over the data after the dense model, and what it was compressed to."""
    cfg = task.all_variants[variant]
    if isinstance(cfg, ConversionVariant):
        stages = task.stages(variant)
        imitation = stages.projections.epochs if stages.projections else 0.0
        return round(imitation + stages.sparsify.epochs + stages.router.epochs, 10)
    return getattr(task, cfg.method).epochs


def test_every_method_of_every_suite_gets_the_same_passes_over_the_data():
    methods = set()
    for name, task in shipped_tasks():
        total = round(task.sparsify.epochs + task.router.epochs, 10)
        assert task.finetune_config().epochs == total > 0, name
        for variant, cfg in task.all_variants.items():
            methods.add(cfg.method)
            if cfg.method != "quantized":  # the dense model as it is, in fewer bits
                assert trained_epochs(task, variant) == pytest.approx(total), (name, variant)
    assert methods == {"d2dmoe", "moefication", "ztw", "avit", "quantized"}


def test_variants_with_attention_projections_trade_passes_of_the_sparsification_for_them():
    converted = 0
    for name, task in shipped_tasks():
        for variant, cfg in task.all_variants.items():
            if getattr(cfg, "projections", None) is not None:
                stages, converted = task.stages(variant), converted + 1
                given = stages.projections.epochs + stages.sparsify.epochs
                assert given == pytest.approx(task.sparsify.epochs), (name, variant)
                assert min(stages.sparsify.epochs, stages.projections.epochs) > 0, (name, variant)
    assert converted > 0


def test_where_rates_are_tuned_every_method_of_figure_4_has_as_many_tries():
    tuned = 0
    for name, task in shipped_tasks():
        if not task.tuning:
            continue
        tuned += 1
        compared = {*task.figures.tradeoff, "dense_finetuned"}
        assert compared <= task.tuning.keys(), name
        assert len({len(set(rates)) for rates in task.tuning.values()}) == 1, name
        for variant, rates in task.tuning.items():
            assert task.rate(variant) in rates, (name, variant)
    assert tuned > 0


def test_no_two_shipped_results_share_a_folder():
    for path in SHIPPED:
        assert stage_configs(load_config(yaml.safe_load(path.read_text()), ROOT))
