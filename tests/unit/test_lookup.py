"""Laws of the tables: names are found or refused, and what records name is there and fits."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import small
import small_language

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.claims import CLAIMS
from d2dmoe.config.compression import DistilledBase, PrunedBase
from d2dmoe.config.figures import FiguresConfig
from d2dmoe.config.named import OneOf
from d2dmoe.config.select import SelectConfig
from d2dmoe.config.task import SUITES, TaskConfig
from d2dmoe.config.variant import Variant
from d2dmoe.errors import UnknownName, UserError
from d2dmoe.ffn import FFN
from d2dmoe.figures import FIGURES, WALL_CLOCK, by_key
from d2dmoe.lookup import look_up, module_named, module_of, resolve, table_of
from d2dmoe.methods import CONVERSION_KNOBS, EVALUATIONS, METHODS, evaluation_of
from d2dmoe.models import ARCHITECTURES, names_where
from d2dmoe.models.build import create_model
from d2dmoe.plan import digest
from d2dmoe.plan.checks import OTHER_RULES
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES
from d2dmoe.stages import STAGES
from d2dmoe.surgery import find

ROOT = Path(__file__).parents[2]
TABLES: dict[str, Mapping[str, Any]] = {
    "activations": ACTIVATIONS,
    "kinds of routers": ROUTER_KINDS,
    "selection rules": RULES,
    "architectures": ARCHITECTURES,
    "stages": STAGES,
    "methods": METHODS,
    "evaluations": EVALUATIONS,
    "figures": FIGURES,
    "claims": CLAIMS,
}
RECORDS = [(table, name, record) for table, own in TABLES.items() for name, record in own.items()]
IDS = [f"{table}: {name}" for table, name, _ in RECORDS]


# Names.


@pytest.mark.parametrize(("table", "name", "record"), RECORDS, ids=IDS)
def test_every_record_is_found_by_its_name(table, name, record):
    assert look_up(TABLES[table], name, table) is record and record.name == name


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", ["nothing", "", None, 3, ["relu"], {}])
def test_an_unknown_name_is_refused_with_those_that_are_known(table, name):
    with pytest.raises(UnknownName) as caught:
        look_up(TABLES[table], name, "kind of thing")
    message = f"unknown kind of thing {name!r}; allowed: {', '.join(TABLES[table])}"
    assert str(caught.value) == message
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ValueError)


@dataclass(frozen=True)
class Thing:
    name: str
    value: int = 0


def test_a_table_keeps_the_order_of_its_records():
    records = [Thing("b", 1), Thing("a", 2)]
    table = table_of(records)
    assert list(table.items()) == [("b", records[0]), ("a", records[1])]


@pytest.mark.parametrize("knob", ["nothing", "", "relu"])
def test_a_knob_that_no_evaluation_knows_is_refused_with_those_that_are_known(knob):
    with pytest.raises(UnknownName) as caught:
        evaluation_of(knob)
    known = [knob for how in EVALUATIONS.values() for knob in how.knobs]
    assert str(caught.value) == f"unknown knob {knob!r}; allowed: {', '.join(known)}"


# References.


def test_records_lie_where_the_digest_of_code_looks_for_them():
    """A job names those that it uses; a table in another module counts as a whole."""
    modules = {type(record).__module__.removeprefix("d2dmoe.") for *_, record in RECORDS}
    assert modules == set(digest.TABLES)


@pytest.mark.parametrize(("table", "name", "record"), RECORDS, ids=IDS)
def test_records_hold_no_code(table, name, record):
    """They name it, so that their words tell of an edit of theirs, and of nothing else."""
    assert not any(callable(value) for value in vars(record).values())


def test_a_reference_is_a_module_and_what_it_holds():
    assert resolve("d2dmoe.lookup:look_up") is look_up
    assert module_of("d2dmoe.lookup:look_up") == "d2dmoe.lookup"
    assert module_named("d2dmoe.lookup").look_up is look_up


@pytest.mark.parametrize(
    ("reference", "error", "named"),
    [
        ("d2dmoe.nothing:f", ImportError, "d2dmoe.nothing"),
        ("d2dmoe.lookup:nothing", AttributeError, "nothing"),
    ],
)
def test_a_reference_to_nothing_is_an_error_that_names_it(reference, error, named):
    with pytest.raises(error, match=named):
        resolve(reference)


def references_of(record: Any) -> dict[str, str]:
    """All references of a record, by its fields."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        k: v for k, v in values.items() if isinstance(v, str) and re.fullmatch(r"[\w.]+:\w+", v)
    }


@pytest.mark.parametrize(("table", "name", "record"), RECORDS, ids=IDS)
def test_every_reference_leads_to_code(table, name, record):
    for field, reference in references_of(record).items():
        assert callable(resolve(reference)), f"{field} of {name}: {reference}"


FUNCTIONS = {  # the arguments that functions are called with, by place; options come by name
    "activations": {"torch": "x"},
    "selection rules": {"select": "scores value"},
    "stages": {"make": "parent options run"},
    "evaluations": {"measure": "model_path knob options run"},
    "figures": {"request": "plan suite task figure", "check": "task place options"},
    "claims": {"test": "evidence"},
}


def takes(function: Any, arguments: list[str]) -> bool:
    """Whether a function can be called with so many arguments, by their places."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(("table", "name", "record"), RECORDS, ids=IDS)
def test_functions_take_what_their_callers_give(table, name, record):
    for field, arguments in FUNCTIONS.get(table, {}).items():
        reference = getattr(record, field)
        if reference is not None and module_of(reference).startswith("d2dmoe."):
            assert takes(resolve(reference), arguments.split()), f"{field} of {name}"


def test_losses_and_scores_of_routers_take_what_their_callers_give():
    for kind in ROUTER_KINDS.values():
        assert takes(resolve(kind.loss), ["router", "moe", "z"])
        assert callable(resolve(kind.scores))


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.rebuild])
def test_what_rebuilds_a_stages_modules_takes_a_model_and_its_spec(name):
    first = list(inspect.signature(resolve(STAGES[name].rebuild)).parameters)[:2]
    assert first == ["model", "spec"]


# What records say of each other, and of the configuration.


@pytest.mark.parametrize("name", STAGES)
def test_a_stages_hints_and_named_options_are_options_of_it(name):
    stage = STAGES[name]
    options = resolve(stage.options).model_fields
    assert stage.hint.keys() <= options.keys() and stage.hint
    for option, table in stage.named.items():
        checks = [x for x in options[option].metadata if isinstance(x, OneOf)]
        assert [check.table for check in checks] == [table] and table in TABLES.values()


def test_a_stage_that_does_not_train_has_no_learning_rate_and_no_threads():
    for stage in STAGES.values():
        options = resolve(stage.options).model_fields
        for option in ("epochs", "lr", "threads"):
            assert (option in options) == stage.trains, stage.name
        assert stage.trains or not stage.tuned


def test_no_stages_name_begins_like_another_and_a_hyphen():
    """Rules tell folders apart by it."""
    for name in STAGES:
        assert re.fullmatch(r"[a-z_]+", name)


def test_compressed_models_have_a_method_and_a_stage():
    kinds = {
        get_args(base.model_fields["kind"].annotation)[0] for base in (PrunedBase, DistilledBase)
    }
    assert {name for name, stage in STAGES.items() if stage.method} == kinds
    for kind in kinds:
        assert METHODS[STAGES[kind].method].role == "reference"
        assert STAGES[kind].dense


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.options])
def test_a_method_with_variants_has_options_and_a_plan(name):
    method = METHODS[name]
    options = resolve(method.options)
    assert issubclass(options, Variant)
    assert get_args(options.model_fields["method"].annotation) == (name,)
    plan = module_named(method.plan)
    assert takes(plan.chains, ["task", "variant"]) and takes(plan.knob, ["task", "variant"])
    assert takes(plan.check, ["task", "name", "variant"])


def test_methods_without_variants_have_no_plan():
    for method in METHODS.values():
        assert bool(method.options) == bool(method.plan)
        assert method.role in ("ours", "extension", "baseline", "neighbour", "control", "reference")
        assert bool(method.rival) == (method.role == "baseline")


def test_a_task_has_the_sections_of_methods_and_points_of_every_rule_and_knob():
    for name, method in METHODS.items():
        if method.section:
            assert TaskConfig.model_fields[name].default is None
    knobs = {method.knob.name for method in METHODS.values() if method.knob}
    assert SelectConfig.model_fields.keys() == RULES.keys() | knobs | set(CONVERSION_KNOBS)
    assert not RULES.keys() & knobs


def test_every_knob_is_measured_in_one_way():
    knobs = [knob for how in EVALUATIONS.values() for knob in how.knobs]
    assert len(knobs) == len(set(knobs))
    own = {method.knob.name for method in METHODS.values() if method.knob}
    assert {*RULES, *own, "dense"} <= set(knobs)
    for name, how in EVALUATIONS.items():
        assert all(evaluation_of(knob) is how for knob in how.knobs) and name == how.name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architectures_module_has_what_its_record_promises(name):
    record = ARCHITECTURES[name]
    module = import_module(record.module)
    assert takes(module.create, ["cfg", "about"]) and takes(module.build, ["options"])
    assert takes(module.separate_projections, ["model"])
    assert hasattr(module, "BLOCK") or not record.class_token
    assert hasattr(module, "HEADS") == record.prunable_heads
    assert hasattr(module, "SUBLAYERS") == record.removable
    if record.removable:
        assert {*module.SUBLAYERS} == {"attention", "ffn"} and module.HEAD and module.BLOCK
    options = resolve(record.options)
    assert get_args(options.model_fields["architecture"].annotation) == (name,)
    assert record.data in ("images", "texts", "corpus")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_names_the_activation_of_its_models(name):
    """Of which models that are trained from scratch have no other."""
    if name == "vit":
        cfg, about = small.MODEL, small.ABOUT
    else:
        cfg, about = small_language.TINY[name], small_language.ABOUT_OF[name]
    assert (cfg.weights, cfg.activation) == ("scratch", None)
    ffns = find(create_model(cfg, about)[1], FFN).values()
    assert {ffn.activation_name for ffn in ffns} == {ARCHITECTURES[name].activation}


def test_architectures_are_listed_by_what_they_can():
    assert names_where("halts") == "vit" and names_where("class_token") == "vit, bert"


def test_no_alias_means_two_activations():
    aliases = [alias for activation in ACTIVATIONS.values() for alias in activation.aliases]
    assert len(aliases) == len(set(aliases))


def test_the_papers_kind_of_router_comes_first():
    """The figure that compares kinds begins with it."""
    assert next(iter(ROUTER_KINDS)) == "regression"


# Figures, claims and the words of the report.


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_a_caption_in_the_report(name):
    assert (ROOT / "report" / f"{name}.rst").read_text().strip()


def test_the_figure_of_the_benchmarks_is_none_of_a_tasks():
    """Its rules are others; its record is one of figures."""
    assert WALL_CLOCK.name not in FIGURES and not WALL_CLOCK.key and not WALL_CLOCK.overall
    assert callable(resolve(WALL_CLOCK.draw)) and callable(resolve(WALL_CLOCK.request))


def test_every_text_of_the_report_is_used():
    rules = "".join(path.read_text() for path in [ROOT / "Snakefile", *ROOT.glob("rules/*.smk")])
    named = set(re.findall(r'"(\w+)"', rules)) | {"workflow"} | FIGURES.keys()
    texts = {path.stem for path in ROOT.glob("report/*.rst")}
    assert FIGURES.keys() <= texts <= named


def test_a_tasks_figures_are_the_records_with_a_key():
    keys = by_key()
    assert FiguresConfig.model_fields.keys() == keys.keys() | {"labels"}
    for key, figure in keys.items():
        assert figure.key == key and figure.description
    assert all(figure.key or figure.overall for figure in FIGURES.values())


def test_claims_compare_variants_of_figures_that_there_are():
    for claim in CLAIMS.values():
        assert set(claim.figures) <= by_key().keys()
        assert bool(claim.test) == bool(claim.figures) and claim.untested
    for kind in "CN":  # the paper's, then the neighbours'
        names = [name for name in CLAIMS if name.startswith(kind)]
        assert names == [f"{kind}{i}" for i in range(1, len(names) + 1)]
    assert [name[0] for name in CLAIMS] == sorted(name[0] for name in CLAIMS)


def test_no_record_is_called_like_a_target_of_the_workflow():
    """Rules bear the names of records."""
    rules = [*STAGES, *EVALUATIONS, *FIGURES, *SUITES]
    assert len(rules) == len(set(rules)) and not set(rules) & set(OTHER_RULES)
