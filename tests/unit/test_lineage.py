"""Laws of the lineages and their folders: what is shared is run once, what differs never meets."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import SHIPPED, shipped_plan
from small import others_later
from small_config import RATES, with_everything

from d2dmoe.config.data import data_config
from d2dmoe.config.experiment import Config, parse_config
from d2dmoe.config.task import SUITES, Suite
from d2dmoe.config.variant import DENSE_VARIANTS
from d2dmoe.errors import ConfigError
from d2dmoe.lookup import resolve
from d2dmoe.plan.folders import data_folder, plain, stage_folder
from d2dmoe.plan.lineage import Lineage, Step, lineages, trials
from d2dmoe.plan.plan import Plan, lineage_of, load_plan, options_of
from d2dmoe.plan.tables import (
    all_results,
    boolq,
    job_log,
    job_record,
    job_records,
    models,
    suite_results,
    tuning,
)
from d2dmoe.plan.variants import bases_of, labels, rate, variants_of
from d2dmoe.stages import STAGES

ROOT = Path(__file__).parents[2]
CONVERSION = ["dense", "sparsify", "clustering", "router"]
drawn = settings(deadline=None, derandomize=True, max_examples=50)


@pytest.fixture
def config(raw) -> Config:
    return parse_config(raw)


@pytest.fixture
def everything(raw) -> Config:
    """Every method, suite, compressed model and trial."""
    return parse_config(with_everything(raw))


def by_variant(config: Config, seed: int = 0, suite: Suite = "main") -> dict[str, Lineage]:
    return {line.variant: line for line in lineages(config, suite) if line.seed == seed}


def stages_of(line: Lineage) -> list[str]:
    return [step.stage.name for step in line.steps]


def all_lines(config: Config) -> list[Lineage]:
    suites = [line for suite in SUITES for line in lineages(config, suite)]
    return suites + [line for _rate, line in trials(config)]


def steps_of(config: Config) -> list[Step]:
    return [step for line in all_lines(config) for step in line.steps]


def content(step: Step, config: Config) -> str:
    """All that a stage's result depends on, but for the code."""
    data = plain(config.tasks[step.task].data)
    chain = [[s.stage.name, plain(s.cfg)] for s in step.steps]
    return json.dumps([step.task, step.seed, data, chain])


# Which lineages there are.


def test_there_is_one_lineage_for_every_task_seed_and_variant(config):
    keys = [(line.task, line.seed, line.variant) for line in lineages(config)]
    variants = {*DENSE_VARIANTS, *config.tasks["tiny"].variants}
    assert len(keys) == len(set(keys))
    assert set(keys) == {("tiny", seed, variant) for seed in (0, 1) for variant in variants}


ORDER = {  # of variants of `with_everything`; the others convert the dense model's FFNs
    "dense": ["dense"],
    "dense_finetuned": ["dense", "finetune"],
    "attention": ["dense", "projections", *CONVERSION[1:]],
    "ztw": ["dense", "finetune", "ztw"],
    "avit": ["dense", "avit"],
    "pruned": ["dense", "prune"],
    "pruned_finetuned": ["dense", "prune", "finetune"],
    "pruned_sparse": ["dense", "prune", *CONVERSION[1:]],
    "student": ["dense", "distill"],
    "student_finetuned": ["dense", "distill", "finetune"],
    "student_sparse": ["dense", "distill", *CONVERSION[1:]],
    "int8": ["dense", "quantize"],
    "sparse_int8": [*CONVERSION, "quantize"],
    "tuned": [*CONVERSION, "tune"],
    "narrow": ["dense", "finetune"],
    "cats": ["dense", "finetune", "thresholds"],
    "chess": ["dense", "sparsify", "thresholds"],
    "teal": ["dense", "finetune", "input_thresholds"],
    "carved": ["dense", "sparsify", "cmoe"],
    "carved_dense": ["dense", "finetune", "cmoe"],
    "carved_tuned": ["dense", "finetune", "cmoe"],
    "factors": ["dense", "factorllm"],
    "adapted": ["dense", "finetune", "dyn_adapter"],
    "fewer": [*CONVERSION, "seer"],
    "grouped": [*CONVERSION, "sam"],
    "leaner": ["dense", "finetune", "ldpruner"],
    "adaptive": [*CONVERSION, "sensitivity"],
}


def test_every_variant_goes_its_methods_stages_each_the_parent_of_the_next(everything):
    for line in all_lines(everything):
        assert stages_of(line) == ORDER.get(line.variant, CONVERSION)
        assert line.steps[0].parent is None
        for parent, child in zip(line.steps, line.steps[1:], strict=False):
            assert child.parent is parent
        assert line.folder == line.last.folder and line.last is line.steps[-1]
        assert line.step_of(stages_of(line)[-1]) is line.last
        for index, step in enumerate(line.steps, 1):
            assert step.steps == line.steps[:index]


def test_a_steps_architectures_are_those_of_all_models_on_its_way(raw):
    raw = with_everything(raw)
    student = raw["tasks"]["tiny"]["bases"]["student"]["model"]
    student |= {"architecture": "bert", "positions": 8}
    del student["patch_size"]
    lines = by_variant(parse_config(raw), suite="compatibility")
    assert lines["student"].last.architectures == {"vit", "bert"}
    assert lines["student_sparse"].last.architectures == {"vit", "bert"}
    assert lines["pruned_sparse"].last.architectures == lines["dense"].last.architectures == {"vit"}


def test_a_suite_runs_its_own_variants_and_those_its_figures_compare_with(everything):
    task = everything.tasks["tiny"]
    found = {suite: set(by_variant(everything, suite=suite)) for suite in SUITES}
    dense = set(DENSE_VARIANTS)
    assert found["main"] == dense | task.variants.keys()
    assert found["ablations"] == dense | {"sparse", "binary", "wide", "tuned", "bound", "narrow"}
    bases = {"pruned", "pruned_finetuned", "student", "student_finetuned"}
    own = {"pruned_sparse", "student_sparse", "int8", "sparse_int8"}
    assert found["compatibility"] == dense | bases | own | {"sparse"}
    own = {"carved", "carved_dense", "carved_tuned", "factors", "fewer", "grouped", "leaner"}
    own |= {"adaptive", "adapted"}
    assert found["neighbours"] == dense | {"sparse", "cats", "chess", "teal"} | own


def test_a_suite_that_a_task_has_no_part_in_runs_nothing_of_it(config):
    task = config.tasks["tiny"]
    for suite in SUITES[1:]:
        assert list(lineages(config, suite)) == []
        assert variants_of(task, suite) == bases_of(task, suite) == []
    assert list(trials(config)) == []


def test_a_compressed_model_runs_where_it_is_converted_or_drawn_only(raw):
    raw = with_everything(raw)
    task = raw["tasks"]["tiny"]
    del task["compatibility"]["variants"]["student_sparse"]
    task["compatibility"]["figures"]["distilled"] = ["sparse"]
    assert "student" not in by_variant(parse_config(raw), suite="compatibility")
    task["compatibility"]["figures"]["distilled"] = ["sparse", "student"]
    config = parse_config(raw)
    assert "student" in by_variant(config, suite="compatibility")
    for suite in ("main", "ablations"):
        assert not {"student", "pruned"} & by_variant(config, suite=suite).keys()


def test_all_that_is_drawn_is_run(everything):
    for suite in SUITES:
        lines = by_variant(everything, suite=suite)
        for names in everything.tasks["tiny"].figures_of(suite).variants().values():
            assert set(names) <= lines.keys()


def test_a_compressed_model_is_there_before_and_after_as_much_training_as_a_conversion(everything):
    lines, task = by_variant(everything, suite="compatibility"), everything.tasks["tiny"]
    for base, method in {"pruned": "pruned", "student": "distilled"}.items():
        compressed, trained_on = lines[base], lines[f"{base}_finetuned"]
        assert compressed.method.name == trained_on.method.name == method
        assert compressed.knob == trained_on.knob == "dense"
        assert trained_on.last.parent == compressed.last
        assert trained_on.last.cfg == task.finetune_step[1]
        assert lines[f"{base}_sparse"].steps[1] == compressed.last
        assert {base, f"{base}_finetuned", f"{base}_sparse"} <= labels(task).keys()


def test_avit_has_a_training_for_every_depth(everything):
    lines = [line for line in lineages(everything) if line.variant == "avit" and line.seed == 0]
    assert [line.last.cfg.depth for line in lines] == [1.0, 1.5]
    assert [hint_of(line.last) for line in lines] == ["avit-d1", "avit-d1.5"]


def test_the_dense_reference_trains_on_for_sparsify_plus_router_epochs(config):
    line, task = by_variant(config)["dense_finetuned"], config.tasks["tiny"]
    assert line.last.cfg.epochs == task.sparsify.epochs + task.router.epochs == 5
    assert hint_of(line.last) == "finetune-e5-lr0.001"
    assert "alpha" not in options_of(line.last)


def test_imitation_takes_its_passes_from_those_of_the_sparsification(everything):
    lines, task = by_variant(everything), everything.tasks["tiny"]
    epochs = {s.stage.name: getattr(s.cfg, "epochs", 0) for s in lines["attention"].steps}
    assert (epochs["projections"], epochs["sparsify"], epochs["router"]) == (1, 2, 2)
    for variant in task.variants:
        given = [getattr(step.cfg, "epochs", 0) for step in lines[variant].steps[1:]]
        reference = task.epochs if variant == "ztw" else 0  # whose backbone stays as it is
        assert sum(given) - reference == task.epochs == 5


# Where results lie.


def hint_of(step: Step) -> str:
    """A folder's name without its digest."""
    return step.folder.rpartition("/")[2].rpartition("-")[0]


SAFE = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,63}")


def test_folders_are_flat_and_named_by_stage_and_digest(everything):
    for step in steps_of(everything):
        place, name = step.folder.rsplit("/", 1)
        assert place == f"results/models/tiny/seed-{step.seed}"
        assert re.fullmatch(rf"{step.stage.name}(-[A-Za-z0-9._]+)+-[0-9a-f]{{8}}", name)
        assert SAFE.fullmatch(name)
        assert step.model == f"{step.folder}/model.safetensors"
        assert step.data == data_folder("tiny", everything.tasks["tiny"].data)


def test_a_folder_belongs_to_the_rule_of_its_stage_alone(everything):
    """Rules tell folders apart by what they begin with."""
    for step in steps_of(everything):
        name = step.folder.rpartition("/")[2]
        assert [x for x in STAGES if re.fullmatch(rf"{x}-[\w.-]+", name)] == [step.stage.name]


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.text("/\\ '\"$*?\n\0.-_~äλ日", max_size=100),
    st.lists(st.text(max_size=20), max_size=5),
)


@st.composite
def chains(draw) -> list[tuple[str, dict[str, Any]]]:
    """The options of a dataset and of some stages, with values that no configuration has."""
    found = [("data", draw(st.dictionaries(st.text(), values, max_size=2)))]
    for name in draw(st.lists(st.sampled_from(list(STAGES)), min_size=1, max_size=4)):
        found.append((name, {key: draw(values) for key in ("more", *STAGES[name].hint)}))
    return found


@drawn
@given(chains(), st.integers(min_value=0, max_value=2**63))
def test_whatever_the_options_a_stages_folder_is_short_and_safe(options, seed):
    place, name = stage_folder("tiny", seed, options).rsplit("/", 1)
    assert place == f"results/models/tiny/seed-{seed}"
    assert SAFE.fullmatch(name)
    assert name.startswith(f"{options[-1][0]}-")


@drawn
@given(chains(), chains())
def test_stages_share_a_folder_just_if_all_options_up_to_them_are_equal(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (stage_folder("tiny", 0, one) == stage_folder("tiny", 0, other)) == same
    assert stage_folder("tiny", 0, one) == stage_folder("tiny", 0, copy.deepcopy(one))
    assert stage_folder("tiny", 1, one) != stage_folder("tiny", 0, one)
    assert stage_folder("other", 0, one) != stage_folder("tiny", 0, one)


DATA = {"kind": "images", "image_size": 8, "validation": 4}
DATA |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


letters = st.characters(exclude_characters="\n")


@drawn
@given(st.one_of(st.text(letters, min_size=1), st.text("/ .-_ä~", min_size=1, max_size=200)))
def test_whatever_its_source_a_datasets_folder_is_short_and_safe(source):
    folder = data_folder("tiny", data_config(DATA | {"source": f"path:{source}"}))
    place, name = folder.rsplit("/", 1)
    assert place == "results/data/tiny" and SAFE.fullmatch(name)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("vendored:fashion-mnist", "fashion-mnist"),
        ("path:some/where/images", "images"),
        ("path:some/where/images/", "images"),
        ("path:../my own images", "my_own_images"),
        ("torchvision:CIFAR10", "CIFAR10"),
        ("path:/", ""),
    ],
)
def test_a_datasets_folder_says_which_one_it_is(source, hint):
    folder = data_folder("tiny", data_config(DATA | {"source": source}))
    assert re.fullmatch(rf"results/data/tiny/{hint}{'-' if hint else ''}[0-9a-f]{{8}}", folder)


@pytest.mark.parametrize(
    ("epochs", "hint"), [(3, "e3"), (3.0, "e3"), (0.65, "e0.65"), (0, "e0"), (1e-5, "e1e-05")]
)
def test_whole_numbers_name_folders_as_people_write_them(raw, epochs, hint):
    raw["tasks"]["tiny"]["dense"]["epochs"] = epochs
    line = by_variant(parse_config(raw))["dense"]
    assert hint_of(line.last) == f"dense-{hint}-lr0.001"


def test_hints_say_what_stages_differ_in(everything):
    lines = {suite: by_variant(everything, suite=suite) for suite in SUITES}
    main, compressed = lines["main"], lines["compatibility"]
    hints = {
        hint_of(main["sparse"].step_of("sparsify")): "sparsify-a0.1",
        hint_of(main["sparser"].step_of("sparsify")): "sparsify-a0.2",
        hint_of(main["random"].step_of("clustering")): "clustering-random-e4",
        hint_of(main["moefication"].last): "router-classification-w8",
        hint_of(main["attention"].step_of("projections")): "projections-qkvo",
        hint_of(compressed["pruned"].last): "prune-heads0.5-neurons0.5",
        hint_of(compressed["int8"].last): "quantize-int8",
        hint_of(lines["ablations"]["wide"].last): "router-regression-w16",
    }
    assert list(hints) == list(hints.values())


def result_paths(plan: Plan) -> Iterator[str]:
    """Every file that the rules make of a configuration, of all suites and trials."""
    yield from all_results(plan)
    for suite in SUITES[1:]:
        yield from suite_results(plan, suite)
    for task in plan.config.tasks:
        yield from plan.data_files(plan.data_folder(task))
        yield from (entry["path"] for entry in tuning(plan, task))
        yield from job_records(plan, task)
        yield job_log(plan.data_folder(task), "tokenizer")
        yield job_record(plan.data_folder(task), "tokenizer")
    yield from (entry["path"] for entry in boolq(plan))
    for step in plan.steps.values():
        yield from (f"{step.folder}/{name}" for name in ("history.csv", "lineage.yaml"))
        yield step.model
        yield from (f(step.folder, step.stage.name) for f in (job_log, job_record))
    lines = [line for suite in SUITES for line in plan.lineages[suite]]
    for line in lines + [line for _rate, line in plan.trials]:
        for split in ("validation", "test"):
            yield from (line.evaluation(split), line.layers(split))
            job = f"evaluate_{split}_{line.knob}"
            yield from (f(line.folder, job) for f in (job_log, job_record))
        yield f"{line.steps[0].folder}/activity/validation.csv"
        yield f"{line.folder}/load_maps/{line.knob}.safetensors"
        yield f"{line.folder}/token_load/{line.knob}.csv"
        for rule in ("load_maps", "token_load"):
            yield from (f(line.folder, f"{rule}_{line.knob}") for f in (job_log, job_record))


@pytest.mark.parametrize("name", others_later(SHIPPED, ["config.yaml", "gpu.yaml"]))
def test_every_result_of_a_shipped_configuration_has_a_short_and_safe_path(name):
    """At most 160 characters below the working directory: some systems allow 260 in all."""
    plan = shipped_plan(name)
    found = list(result_paths(plan))
    assert len(found) > 100
    for result in found:
        assert len(result) <= 160 and re.fullmatch(r"results(/[A-Za-z0-9._-]+)+", result), result
        assert len(result.rpartition("/")[2]) <= 64


# What is shared, and what is not.


def test_variants_share_the_folders_of_the_stages_that_they_share(config):
    lines = by_variant(config)
    sparse, static, random = (lines[v] for v in ("sparse", "static", "random"))
    assert sparse.folder == static.folder
    assert sparse.evaluation("test") != static.evaluation("test")  # the rules differ
    assert sparse.evaluation("test") != sparse.evaluation("validation") != sparse.layers("test")
    assert sparse.step_of("sparsify") == random.step_of("sparsify")
    assert sparse.step_of("clustering").folder != random.step_of("clustering").folder
    assert len({line.step_of("dense").folder for line in lines.values()}) == 1


def test_suites_and_trials_share_what_is_equal_in_them(everything):
    lines = [by_variant(everything, suite=suite) for suite in SUITES]
    for variant in ("dense", "dense_finetuned", "sparse"):
        assert len({by_name[variant].folder for by_name in lines}) == 1
    assert lines[2]["sparse_int8"].last.parent == lines[0]["sparse"].last
    assert lines[2]["int8"].last.parent == lines[0]["dense"].last
    tried = {line.folder for _rate, line in trials(everything)}
    assert tried >= {lines[0][variant].folder for variant in everything.tasks["tiny"].tuning}


def test_folders_differ_just_where_what_they_hold_differs(everything):
    contents = {step.folder: content(step, everything) for step in steps_of(everything)}
    for step in steps_of(everything):
        assert contents[step.folder] == content(step, everything)
    assert len(set(contents.values())) == len(contents) > 50
    assert contents.keys() == Plan(everything, ROOT).steps.keys()


def test_a_task_may_have_seeds_of_its_own(raw, root):
    raw["tasks"]["other"] = copy.deepcopy(raw["tasks"]["tiny"]) | {"seeds": [7]}
    seeds = {(line.task, line.seed) for line in lineages(parse_config(raw))}
    assert seeds == {("tiny", 0), ("tiny", 1), ("other", 7)}


def test_seeds_share_no_folder(everything):
    seeds = [{s.folder for s in steps_of(everything) if s.seed == seed} for seed in (0, 1)]
    assert seeds[0].isdisjoint(seeds[1]) and len(seeds[0]) == len(seeds[1])


def test_tasks_share_no_folder(raw):
    raw["tasks"]["other"] = copy.deepcopy(raw["tasks"]["tiny"])
    steps = steps_of(parse_config(raw))
    folders = [{s.folder for s in steps if s.task == task} for task in ("tiny", "other")]
    assert folders[0].isdisjoint(folders[1]) and len(folders[0]) == len(folders[1])
    assert len({step.data for step in steps}) == 2


SECTIONS = {  # of a task: the stages that its options reach first
    "data": {"dense"},
    "model": {"dense"},
    "dense": {"dense"},
    "projections": {"projections"},
    "sparsify": {"sparsify", "finetune"},
    "clustering": {"clustering", "cmoe", "thresholds"},
    "router": {"router", "finetune"},  # which is as long
    "ztw": {"ztw"},
    "avit": {"avit"},
    "factorllm": {"factorllm"},
    "dyn_adapter": {"dyn_adapter"},
    "seer": {"seer", "sparsify"},  # from which it takes its passes
    "ldpruner": {"ldpruner", "finetune"},  # likewise
    "sam": {"sam", "sparsify"},  # likewise
    "neighbours.variants.adaptive.sensitivity": {"sensitivity"},
    "cmoe": {"cmoe", "finetune"},  # from which its fine-tuning takes its passes
    "bases.pruned": {"prune"},
    "bases.student": {"distill"},
    "finetune": {"finetune"},
    "variants.sparser.sparsify": {"sparsify"},
    "variants.attention.projections": {"projections"},
    "ablations.variants.wide.router": {"router"},
}
NO_RESULT = {"label"}  # names in figures
REPLACEMENTS = [0.75, 0.25, 0.0001, 16, 3, 2, 1, True, False, "path:other", "random", "relu_l1"]
REPLACEMENTS += ["linear", "classification", "silu", "int8", [4], ["q"], [0.1, 0.2, 0.3], [0.5] * 2]


def options_in(value: Any, key: str) -> Iterator[str]:
    """The dotted keys of all options below a section, defaults included."""
    if isinstance(value, dict):
        for name, own in value.items():
            yield from options_in(own, f"{key}.{name}")
    else:
        yield key


def replaced(raw: dict, config: Config, key: str) -> Config | None:
    """The configuration with another value of an option; None: it can have no other."""
    *parents, last = key.split(".")
    for value in REPLACEMENTS:
        changed = copy.deepcopy(raw)
        place = changed["tasks"]["tiny"]
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        try:
            other = parse_config(changed)
        except ConfigError:
            continue
        if other.model_dump() != config.model_dump():
            return other
    return None


@pytest.mark.workflow
@pytest.mark.parametrize("section", SECTIONS)
def test_another_value_of_any_option_changes_the_folders_from_its_stage_on(raw, section):
    """So going back to earlier options finds their results, and no others in their place."""
    raw = with_everything(raw) | {"seeds": [0]}
    config = parse_config(raw)
    lines = all_lines(config)
    options: Any = config.tasks["tiny"].model_dump(mode="json")
    for name in section.split("."):
        options = options[name] if name in options else options[section.split(".")[0]][name]
    reached, fixed = set(), set()
    for key in options_in(options, section):
        if key.rpartition(".")[2] in NO_RESULT:
            continue
        other = replaced(raw, config, key)
        if other is None:
            fixed.add(key.rpartition(".")[2])
            continue
        first = set()
        for ours, theirs in zip(lines, all_lines(other), strict=True):
            same = [a.folder == b.folder for a, b in zip(ours.steps, theirs.steps, strict=True)]
            assert same == sorted(same, reverse=True)  # equal up to a stage, and none after it
            first |= {stages_of(ours)[same.index(False)]} if False in same else set()
        assert first and first <= SECTIONS[section], key
        reached |= first
    assert reached == SECTIONS[section]
    assert fixed <= {"kind", "architecture", "method"}  # they tell models apart


def test_options_of_projections_reach_no_variant_without_them(raw):
    raw = with_everything(raw)
    changed = copy.deepcopy(raw)
    task = changed["tasks"]["tiny"]
    task["clustering"]["projection_expert_size"] = 4
    task["router"]["projection_width"] = 16
    task["projections"]["factor"] = 2.0
    before, after = (by_variant(parse_config(x)) for x in (raw, changed))
    for variant, line in before.items():
        assert (line.folder == after[variant].folder) == (variant != "attention")


def test_going_back_to_earlier_options_finds_the_earlier_folders(raw):
    changed = copy.deepcopy(raw)
    changed["tasks"]["tiny"]["dense"]["lr"] = 0.01
    folders = [{s.folder for s in steps_of(parse_config(x))} for x in (raw, changed, raw)]
    assert folders[0] == folders[2] and folders[0].isdisjoint(folders[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda task: task["variants"].update(new={"method": "d2dmoe", "label": "new"}),
        lambda task: task["variants"]["sparse"].update(label="another name"),
        lambda task: task["select"].update(dynamic_k=[0.0, 0.25, 0.5]),
        lambda task: task.update(eval_batch_size=3),
        lambda task: task["figures"].pop("load_maps"),
    ],
)
def test_what_no_model_depends_on_changes_no_folder(raw, change):
    changed = copy.deepcopy(raw)
    change(changed["tasks"]["tiny"])
    folders = [{s.folder for s in steps_of(parse_config(x))} for x in (raw, changed)]
    assert folders[0] == folders[1]


@pytest.mark.parametrize("key", ["d_model", "d_ff", "layers", "heads"])
def test_students_that_differ_in_any_size_have_folders_of_their_own(raw, key):
    raw = with_everything(raw)
    task = raw["tasks"]["tiny"]
    other = copy.deepcopy(task["bases"]["student"])
    other["model"][key] *= 2
    task["bases"]["other"] = other
    task["compatibility"]["variants"]["other_sparse"] = {
        **task["compatibility"]["variants"]["student_sparse"],
        "base": "other",
    }
    lines = by_variant(parse_config(raw), suite="compatibility")
    for end in ("", "_finetuned", "_sparse"):
        assert lines[f"student{end}"].folder != lines[f"other{end}"].folder


# What jobs and readers are told.


@pytest.mark.workflow
def test_options_of_jobs_are_plain_sorted_values_that_give_the_stages_own_back(everything):
    for step in steps_of(everything):
        own = options_of(step)
        assert list(own) == sorted(own)
        assert json.loads(json.dumps(own)) == own  # no tuples, paths or models
        assert yaml.safe_load(yaml.safe_dump(own)) == own
        assert resolve(step.stage.options).model_validate(own) == step.cfg


def test_a_lineage_file_says_options_parent_and_data(everything):
    lines = by_variant(everything)
    steps = Plan(everything, ROOT).steps
    for step in steps.values():
        told = lineage_of(step)
        assert json.loads(json.dumps(told)) == told
        assert list(told) == ["task", "seed", "stage", "options", "parent", "data"]
        assert (told["task"], told["seed"]) == (step.task, step.seed)
        assert told["stage"] == step.stage.name and told["options"] == options_of(step)
        assert told["data"] == step.data
        assert told["parent"] is None or steps[told["parent"]] == step.parent
        assert (told["parent"] is None) == (step.stage.name == "dense")
    router = lineage_of(lines["moefication"].last)
    assert router["options"]["kind"] == "classification"
    assert router["parent"] == lines["moefication"].step_of("clustering").folder


def test_the_table_of_models_has_every_stage_of_every_variant_and_seed_once(raw, root):
    plan = load_plan(with_everything(raw), root)
    rows = models(plan)
    assert len({json.dumps(row) for row in rows}) == len(rows)
    assert all(list(row) == ["task", "variant", "seed", "stage", "folder"] for row in rows)
    for suite in SUITES:
        for line in plan.lineages[suite]:
            about = {"task": line.task, "variant": line.variant, "seed": line.seed}
            for step in line.steps:
                assert about | {"stage": step.stage.name, "folder": step.folder} in rows
    assert {row["folder"] for row in rows} < plan.steps.keys()  # trials are no variants


# Learning rates.


def test_a_learning_rate_tried_changes_the_longest_training_alone(everything):
    lines = by_variant(everything)
    for tried, trial in trials(everything):
        if trial.variant == "dense" or trial.seed != 0:
            continue
        *_, tuned = (step for step in trial.steps if step.stage.tuned)
        assert tuned.cfg.lr == tried
        if trial.variant == "avit":  # several trainings of one name
            continue
        for step, own in zip(trial.steps, lines[trial.variant].steps, strict=True):
            if step is tuned:
                assert step.cfg == own.cfg.model_copy(update={"lr": tried})
            else:
                assert step.cfg == own.cfg


def test_every_variant_is_tried_at_all_its_rates_in_all_its_trainings_and_seeds(everything):
    task = everything.tasks["tiny"]
    found = [(line.seed, line.variant, tried) for tried, line in trials(everything)]
    for seed in (0, 1):
        assert found.count((seed, "dense", 0.0)) == 1
        for variant in task.tuning:
            for tried in RATES:
                assert found.count((seed, variant, tried)) == (2 if variant == "avit" else 1)
    assert len(found) == 2 * (1 + 2 * (5 + 2))


def test_the_trial_at_a_variants_own_rate_is_that_variant(everything):
    task = everything.tasks["tiny"]
    lines = list(lineages(everything))
    for tried, trial in trials(everything):
        own = tried == rate(task, trial.variant) or trial.variant == "dense"
        assert (trial in lines) == own


def test_the_dense_reference_may_have_a_rate_of_its_own(raw):
    raw["tasks"]["tiny"]["finetune"] = {"lr": 0.0004}
    config = parse_config(raw)
    lines = by_variant(config)
    assert hint_of(lines["dense_finetuned"].last) == "finetune-e5-lr0.0004"
    assert lines["sparse"].step_of("sparsify").cfg.lr == 0.001
    assert rate(config.tasks["tiny"], "dense_finetuned") == 0.0004


def test_every_lineage_has_the_rate_of_its_longest_training(everything):
    """Of quantised weights, which are not trained, 0."""
    task = everything.tasks["tiny"]
    for suite in SUITES:
        for line in lineages(everything, suite):
            if len(line.steps) > 1:
                tuned = [step.cfg.lr for step in line.steps if step.stage.tuned]
                compressed = [step.cfg.lr for step in line.steps if step.stage.method]
                assert rate(task, line.variant) == (tuned or compressed or [0.0])[-1]
