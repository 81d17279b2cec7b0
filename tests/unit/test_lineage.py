"""Laws of the folders: what is shared is run once, what differs never meets."""

import json

import pytest

from d2dmoe.config.experiment import Config
from d2dmoe.lineage import DENSE_VARIANTS, Lineage, lineages, stage_configs


@pytest.fixture
def config(raw) -> Config:
    return Config.model_validate(raw)


def by_variant(config: Config, seed: int = 0) -> dict[str, Lineage]:
    return {line.variant: line for line in lineages(config) if line.seed == seed}


def test_there_is_one_lineage_for_every_task_seed_and_variant(config):
    keys = [(line.task, line.seed, line.variant) for line in lineages(config)]
    variants = {*DENSE_VARIANTS, *config.tasks["tiny"].variants}
    assert len(keys) == len(set(keys))
    assert set(keys) == {("tiny", seed, variant) for seed in (0, 1) for variant in variants}


def test_every_variant_goes_dense_sparsify_split_router_each_inside_its_parent(config):
    for line in lineages(config):
        stages = [step.stage for step in line.steps]
        if line.variant not in DENSE_VARIANTS:
            assert stages == ["dense", "sparsify", "split", "router"]
        for parent, child in zip(line.steps, line.steps[1:], strict=False):
            assert child.folder.is_relative_to(parent.folder / child.stage)
        assert line.folder == line.steps[-1].folder == line.folder_of(stages[-1])
        assert str(line.folder).startswith(f"results/models/tiny/seed~{line.seed}/")


def test_variants_share_the_folders_of_the_stages_that_they_share(config):
    lines = by_variant(config)
    sparse, static, random = (lines[v] for v in ("sparse", "static", "random"))
    assert sparse.folder == static.folder
    assert sparse.evaluation("test") != static.evaluation("test")  # the rules differ
    assert sparse.folder_of("sparsify") == random.folder_of("sparsify")
    assert sparse.folder_of("split") != random.folder_of("split")
    assert len({line.folder_of("dense") for line in lines.values()}) == 1


def test_different_alphas_have_different_folders(config):
    folders = [by_variant(config)[v].folder_of("sparsify") for v in ("sparse", "sparser")]
    assert [folder.name.split(",")[1] for folder in folders] == ["alpha~0.1", "alpha~0.2"]


def test_lineages_whose_options_differ_never_share_a_folder(config):
    options = {}
    for line in lineages(config):
        for step in line.steps:
            assert options.setdefault(step.folder, step.cfg) == step.cfg


def test_seeds_share_no_folder(config):
    seeds = [
        {step.folder for line in lineages(config) if line.seed == s for step in line.steps}
        for s in (0, 1)
    ]
    assert seeds[0].isdisjoint(seeds[1])


def test_the_dense_reference_trains_on_for_sparsify_plus_router_epochs(config):
    line = by_variant(config)["dense_finetuned"]
    task = config.tasks["tiny"]
    finetune = line.steps[-1].cfg
    assert [step.stage for step in line.steps] == ["dense", "finetune"]
    assert finetune.epochs == task.sparsify.epochs + task.router.epochs == 5
    assert line.folder.name == "epochs~5,lr~0.001"
    assert "alpha" not in stage_configs(config)[str(line.folder)]


def test_stage_configs_are_plain_sorted_values_that_differ_where_the_stages_do(config):
    configs = stage_configs(config)
    steps = [step for line in lineages(config) for step in line.steps]
    assert configs.keys() == {str(step.folder) for step in steps}
    for step in steps:
        plain = configs[str(step.folder)]
        assert list(plain) == sorted(plain)
        assert json.loads(json.dumps(plain)) == plain  # no tuples, paths or models
        assert plain == step.cfg.model_dump(mode="json")
    lines = by_variant(config)
    assert configs[str(lines["sparser"].folder_of("sparsify"))]["alpha"] == 0.2
    assert configs[str(lines["moefication"].folder)]["kind"] == "classification"


@pytest.mark.parametrize(
    ("epochs", "name"), [(3, "epochs~3"), (3.0, "epochs~3"), (0.65, "epochs~0.65"), (0, "epochs~0")]
)
def test_whole_numbers_name_folders_as_people_write_them(raw, epochs, name):
    raw["tasks"]["tiny"]["dense"]["epochs"] = epochs
    line = by_variant(Config.model_validate(raw))["dense"]
    assert line.folder.name == f"{name},lr~0.001"
