"""Every configuration that is shipped is valid, and the schema for editors is up to date."""

import json
from itertools import chain
from pathlib import Path

import pytest
from shipped import SHIPPED, shipped_plan
from small import others_later

from d2dmoe.config.schema import schema_text
from d2dmoe.config.task import TaskConfig
from d2dmoe.methods import METHODS
from d2dmoe.methods.conversion.plan import conversion
from d2dmoe.plan.plan import options_of
from d2dmoe.plan.variants import chains, rate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", others_later(SHIPPED, ["config.yaml", "gpu.yaml"]))
def test_a_shipped_configuration_is_valid(name):
    assert shipped_plan(name).config.tasks and shipped_plan(name).steps


def test_the_schema_equals_the_models():
    """If not: python -m d2dmoe.config.schema"""
    assert (ROOT / "config.schema.json").read_text() == schema_text()


def shipped_tasks() -> list[tuple[str, TaskConfig]]:
    """Every task of every configuration, and what it is called in messages."""
    configs = {name: shipped_plan(name).config for name in SHIPPED}
    return [(f"{file} {name}", t) for file, c in configs.items() for name, t in c.tasks.items()]


def trained_epochs(task: TaskConfig, variant: str) -> set[float]:
    """Passes over the data after the dense model, and what it was compressed to, of each of a
    variant's trainings."""
    before = ("dense", "prune", "distill")
    epochs = [
        [getattr(cfg, "epochs", 0.0) for stage, cfg in steps if stage not in before]
        for steps in chains(task, variant)
    ]
    return {round(sum(own), 10) for own in epochs}


def test_every_method_of_every_suite_gets_the_same_passes_over_the_data():
    methods = set()
    for name, task in shipped_tasks():
        total = round(task.sparsify.epochs + task.router.epochs, 10)
        assert task.finetune_step[1].epochs == total > 0, name
        for variant, cfg in task.all_variants.items():
            methods.add(cfg.method)
            if METHODS[cfg.method].training_free:
                assert max(trained_epochs(task, variant)) <= total, (name, variant)
            else:
                on_the_reference = cfg.method in ("ztw", "dyn_adapter")  # with its own passes
                times = 2 if on_the_reference else 1
                assert trained_epochs(task, variant) == {times * total}, (name, variant)
    assert methods == {name for name, method in METHODS.items() if method.options}


def test_variants_with_attention_projections_trade_passes_of_the_sparsification_for_them():
    converted = 0
    for name, task in shipped_tasks():
        for variant, cfg in task.all_variants.items():
            if getattr(cfg, "projections", None) is not None:
                stages, converted = conversion(task, cfg), converted + 1
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
            assert rate(task, variant) in rates, (name, variant)
    assert tuned > 0


@pytest.mark.workflow
def test_no_two_shipped_results_share_a_folder_nor_lie_equal_ones_in_two():
    for name in SHIPPED:
        plan, contents = shipped_plan(name), {}
        lines = [*chain.from_iterable(plan.lineages.values()), *(line for _, line in plan.trials)]
        for step in (step for line in lines for step in line.steps):
            content = [step.task, step.seed, *((s.stage.name, options_of(s)) for s in step.steps)]
            assert contents.setdefault(step.folder, content) == content
        assert len({json.dumps(content) for content in contents.values()}) == len(contents) > 0
