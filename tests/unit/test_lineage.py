"""Laws of the folders: what is shared is run once, what differs never meets."""

import json

import pytest
from small_config import RATES, with_everything

from d2dmoe.config.experiment import Config
from d2dmoe.config.task import DENSE_VARIANTS, SUITES, Suite
from d2dmoe.errors import ConfigError
from d2dmoe.plan.lineage import TUNED, Lineage, Step, lineages, stage_configs, trials


@pytest.fixture
def config(raw) -> Config:
    return Config.model_validate(raw)


@pytest.fixture
def everything(raw) -> Config:
    """Every method, suite, compressed model and trial."""
    return Config.model_validate(with_everything(raw))


def by_variant(config: Config, seed: int = 0, suite: Suite = "main") -> dict[str, Lineage]:
    return {line.variant: line for line in lineages(config, suite) if line.seed == seed}


def stages_of(line: Lineage) -> list[str]:
    return [step.stage for step in line.steps]


def all_lines(config: Config) -> list[Lineage]:
    suites = [line for suite in SUITES for line in lineages(config, suite)]
    return suites + [line for _rate, line in trials(config)]


def all_steps(config: Config) -> list[Step]:
    return [step for line in all_lines(config) for step in line.steps]


def test_there_is_one_lineage_for_every_task_seed_and_variant(config):
    keys = [(line.task, line.seed, line.variant) for line in lineages(config)]
    variants = {*DENSE_VARIANTS, *config.tasks["tiny"].variants}
    assert len(keys) == len(set(keys))
    assert set(keys) == {("tiny", seed, variant) for seed in (0, 1) for variant in variants}


ORDER = {  # of variants of `with_everything`; the others convert the dense model's FFNs
    "dense": ["dense"],
    "dense_finetuned": ["dense", "finetune"],
    "attention": ["dense", "projections", "sparsify", "split", "router"],
    "ztw": ["dense", "ztw"],
    "avit": ["dense", "avit"],
    "pruned": ["dense", "prune"],
    "pruned_finetuned": ["dense", "prune", "finetune"],
    "pruned_sparse": ["dense", "prune", "sparsify", "split", "router"],
    "student": ["dense", "distill"],
    "student_finetuned": ["dense", "distill", "finetune"],
    "student_sparse": ["dense", "distill", "sparsify", "split", "router"],
    "int8": ["dense", "quantize"],
    "sparse_int8": ["dense", "sparsify", "split", "router", "quantize"],
}


def test_every_variant_goes_its_methods_stages_each_inside_its_parent(everything):
    for line in all_lines(everything):
        stages = stages_of(line)
        assert stages == ORDER.get(line.variant, ["dense", "sparsify", "split", "router"])
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


def test_lineages_whose_options_differ_never_share_a_folder_nor_equal_ones_differ(everything):
    options, folders = {}, {}
    for step in all_steps(everything):
        assert options.setdefault(step.folder, step.cfg) == step.cfg
        key = (step.folder.parent.parent, step.stage, step.cfg.model_dump_json())
        assert folders.setdefault(key, step.folder) == step.folder


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


def test_stage_configs_are_plain_sorted_values_of_all_suites_and_trials(everything):
    configs, steps = stage_configs(everything), all_steps(everything)
    assert configs.keys() == {str(step.folder) for step in steps}
    for step in steps:
        plain = configs[str(step.folder)]
        assert list(plain) == sorted(plain)
        assert json.loads(json.dumps(plain)) == plain  # no tuples, paths or models
        assert plain == step.cfg.model_dump(mode="json")
    lines = by_variant(everything)
    assert configs[str(lines["sparser"].folder_of("sparsify"))]["alpha"] == 0.2
    assert configs[str(lines["moefication"].folder)]["kind"] == "classification"


@pytest.mark.parametrize(
    ("epochs", "name"), [(3, "epochs~3"), (3.0, "epochs~3"), (0.65, "epochs~0.65"), (0, "epochs~0")]
)
def test_whole_numbers_name_folders_as_people_write_them(raw, epochs, name):
    raw["tasks"]["tiny"]["dense"]["epochs"] = epochs
    line = by_variant(Config.model_validate(raw))["dense"]
    assert line.folder.name == f"{name},lr~0.001"


def test_seeds_of_suites_and_trials_share_no_folder(everything):
    seeds = [
        {step.folder for x in all_lines(everything) if x.seed == s for step in x.steps}
        for s in (0, 1)
    ]
    assert seeds[0].isdisjoint(seeds[1]) and len(seeds[0]) == len(seeds[1])


def test_a_suite_runs_its_own_variants_and_those_its_figures_compare_with(everything):
    task = everything.tasks["tiny"]
    found = {suite: set(by_variant(everything, suite=suite)) for suite in SUITES}
    dense = set(DENSE_VARIANTS)
    assert found["main"] == dense | task.variants.keys()
    assert found["ablations"] == dense | {"sparse", "binary", "wide"}
    bases = {"pruned", "pruned_finetuned", "student", "student_finetuned"}
    own = {"pruned_sparse", "student_sparse", "int8", "sparse_int8"}
    assert found["compatibility"] == dense | bases | own | {"sparse"}


def test_a_suite_that_a_task_has_no_part_in_runs_nothing_of_it(config):
    for suite in SUITES[1:]:
        assert list(lineages(config, suite)) == []
    assert list(trials(config)) == []


def test_suites_share_what_is_equal_in_them(everything):
    lines = [by_variant(everything, suite=suite) for suite in SUITES]
    for variant in ("dense", "dense_finetuned", "sparse"):
        assert len({by_name[variant].folder for by_name in lines}) == 1
    int8 = lines[2]["sparse_int8"]
    assert int8.folder.is_relative_to(lines[0]["sparse"].folder)
    assert lines[2]["int8"].folder.is_relative_to(lines[0]["dense"].folder)


def test_a_compressed_model_is_there_before_and_after_as_much_training_as_a_conversion(everything):
    lines, task = by_variant(everything, suite="compatibility"), everything.tasks["tiny"]
    for base, method in {"pruned": "pruned", "student": "distilled"}.items():
        compressed, trained_on = lines[base], lines[f"{base}_finetuned"]
        assert compressed.method == trained_on.method == method
        assert compressed.rule == trained_on.rule == "dense"
        assert trained_on.folder.is_relative_to(compressed.folder)
        assert trained_on.steps[-1].cfg == task.finetune_config()
        assert lines[f"{base}_sparse"].folder.is_relative_to(compressed.folder)
        assert {base, f"{base}_finetuned", f"{base}_sparse"} <= task.labels.keys()


def test_a_compressed_model_runs_where_it_is_converted_or_drawn_only(raw):
    raw = with_everything(raw)
    task = raw["tasks"]["tiny"]
    del task["compatibility"]["variants"]["student_sparse"]
    task["compatibility"]["figures"]["distilled"] = ["sparse"]
    assert "student" not in by_variant(Config.model_validate(raw), suite="compatibility")
    task["compatibility"]["figures"]["distilled"] = ["sparse", "student"]
    config = Config.model_validate(raw)
    assert "student" in by_variant(config, suite="compatibility")
    for suite in ("main", "ablations"):
        assert not {"student", "pruned"} & by_variant(config, suite=suite).keys()


def test_all_that_is_drawn_is_run(everything):
    for suite in SUITES:
        lines = by_variant(everything, suite=suite)
        for names in everything.tasks["tiny"].figures_of(suite).variants().values():
            assert set(names) <= lines.keys()


@pytest.mark.parametrize("key", ["d_model", "d_ff", "layers"])
def test_students_of_two_sizes_have_two_folders(raw, key):
    raw = with_everything(raw)
    task = raw["tasks"]["tiny"]
    other = json.loads(json.dumps(task["bases"]["student"]))
    other["model"][key] *= 2
    task["bases"]["other"] = other
    task["compatibility"]["variants"]["other_sparse"] = {
        **task["compatibility"]["variants"]["student_sparse"],
        "base": "other",
    }
    lines = by_variant(Config.model_validate(raw), suite="compatibility")
    for end in ("", "_finetuned", "_sparse"):
        assert lines[f"student{end}"].folder != lines[f"other{end}"].folder


@pytest.mark.parametrize(
    ("base", "key", "value", "named"),
    [
        ("student", "model.heads", 4, "model, temperature, imitation, epochs, lr"),
        ("student", "batch_size", 4, "model, temperature, imitation, epochs, lr"),
        ("pruned", "samples", 100, "heads, neurons, epochs, lr"),
    ],
)
def test_compressed_models_that_differ_in_what_names_no_folder_are_refused(
    raw, base, key, value, named
):
    raw = with_everything(raw)
    task = raw["tasks"]["tiny"]
    other = json.loads(json.dumps(task["bases"][base]))
    *parents, last = key.split(".")
    (other[parents[0]] if parents else other)[last] = value
    task["bases"]["other"] = other
    variant = {"method": "d2dmoe", "label": "other", "base": "other"}
    task["compatibility"]["variants"]["other_sparse"] = variant
    with pytest.raises(ConfigError) as caught:
        stage_configs(Config.model_validate(raw))
    message = str(caught.value)
    assert message.startswith("tasks.tiny.bases: two differ in ")
    assert key.split(".")[0] in message and f"change one of {named} too" in message


def test_a_learning_rate_tried_changes_the_longest_training_alone(everything):
    lines = by_variant(everything)
    for rate, trial in trials(everything):
        if trial.variant == "dense" or trial.seed != 0:
            continue
        (tuned,) = (step for step in trial.steps if step.stage in TUNED)
        assert tuned.cfg.lr == rate
        if trial.variant == "avit":  # several trainings of one name
            continue
        for step, own in zip(trial.steps, lines[trial.variant].steps, strict=True):
            if step.stage in TUNED:
                assert step.cfg == own.cfg.model_copy(update={"lr": rate})
            else:
                assert step.cfg == own.cfg


def test_every_variant_is_tried_at_all_its_rates_in_all_its_trainings_and_seeds(everything):
    task = everything.tasks["tiny"]
    found = [(line.seed, line.variant, rate) for rate, line in trials(everything)]
    for seed in (0, 1):
        assert found.count((seed, "dense", 0.0)) == 1
        for variant in task.tuning:
            for rate in RATES:
                assert found.count((seed, variant, rate)) == (2 if variant == "avit" else 1)
    assert len(found) == 2 * (1 + 2 * (5 + 2))


def test_the_trial_at_a_variants_own_rate_is_that_variant(everything):
    task = everything.tasks["tiny"]
    lines = list(lineages(everything))
    for rate, trial in trials(everything):
        own = rate == task.rate(trial.variant) or trial.variant == "dense"
        assert (trial in lines) == own


def test_avit_has_a_training_for_every_depth(everything):
    lines = [line for line in lineages(everything) if line.variant == "avit" and line.seed == 0]
    assert [line.steps[-1].cfg.depth for line in lines] == [1.0, 1.5]
    assert [line.folder.name.split(",")[0] for line in lines] == ["depth~1", "depth~1.5"]


def test_imitation_takes_its_passes_from_those_of_the_sparsification(everything):
    lines, task = by_variant(everything), everything.tasks["tiny"]
    epochs = {step.stage: getattr(step.cfg, "epochs", 0) for step in lines["attention"].steps}
    assert (epochs["projections"], epochs["sparsify"], epochs["router"]) == (1, 2, 2)
    for variant in task.variants:
        if variant not in ("avit",):
            given = [getattr(step.cfg, "epochs", 0) for step in lines[variant].steps[1:]]
            assert sum(given) == task.epochs == 5


def test_options_of_projections_name_no_folder_of_a_variant_without_them(everything):
    for line in all_lines(everything):
        if "projections" not in stages_of(line):
            assert "projection" not in str(line.folder)


def test_the_dense_reference_may_have_a_rate_of_its_own(raw):
    raw["tasks"]["tiny"]["finetune"] = {"lr": 0.0004}
    config = Config.model_validate(raw)
    lines = by_variant(config)
    assert lines["dense_finetuned"].folder.name == "epochs~5,lr~0.0004"
    assert lines["sparse"].steps[1].cfg.lr == 0.001
    assert config.tasks["tiny"].rate("dense_finetuned") == 0.0004


def test_every_lineage_has_the_rate_of_its_longest_training(everything):
    """Of quantised weights, which are not trained, 0."""
    task = everything.tasks["tiny"]
    for suite in SUITES:
        for line in lineages(everything, suite):
            if len(line.steps) > 1:
                tuned = [s.cfg.lr for s in line.steps if s.stage in TUNED]
                compressed = [s.cfg.lr for s in line.steps if s.stage in ("prune", "distill")]
                assert task.rate(line.variant) == (tuned or compressed or [0.0])[-1]
