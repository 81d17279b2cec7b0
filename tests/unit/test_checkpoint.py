"""Laws of saved models: what is loaded is what was saved, or a clear error."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from small import (
    ABOUT,
    SPEC,
    make_dense,
    make_images,
    make_inputs,
    make_routed,
    make_split,
    others_later,
    values_of,
    with_experts,
    with_routers,
)
from small_language import (
    CAUSAL,
    TINY,
    WIDTH,
    language_spec,
    make_routed_language,
    make_tokens,
)

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.checkpoint import load_dense_model, load_model, read_model, save_model
from d2dmoe.errors import CheckpointError, UnknownName
from d2dmoe.ffn import FFN, set_activation
from d2dmoe.io.tensors import load_tensors, save_tensors
from d2dmoe.models import ARCHITECTURES
from d2dmoe.moe import MoE, operating_point, set_operating_point, set_selection
from d2dmoe.quality import quality
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES
from d2dmoe.spec import ModelSpec, build
from d2dmoe.stages import STAGES
from d2dmoe.surgery import find

SPLIT = with_experts(SPEC)
MODELS = {"dense": (make_dense, SPEC), "split": (make_split, SPLIT)} | {
    kind: (partial(make_routed, kind=kind), with_routers(SPLIT, kind)) for kind in ROUTER_KINDS
}
ROUTED = with_routers(SPLIT)
POINTS = [(rule, value) for rule in RULES for value in values_of(rule)]


@pytest.mark.parametrize("stage", MODELS)
def test_models_of_every_stage_come_back_with_equal_outputs(stage, tmp_path):
    make, spec = MODELS[stage]
    path, model = tmp_path / "model.safetensors", make()
    save_model(path, model, spec)
    loaded, its_spec = load_model(path)
    assert its_spec == spec and not loaded.training
    for rule, value in POINTS:
        set_selection(model, rule, value)
        set_selection(loaded, rule, value)
        assert torch.equal(loaded(make_inputs()), model(make_inputs()))
    kinds = [m.router and m.router.kind for m in find(loaded, MoE).values()]
    assert kinds == {"dense": [], "split": [None] * 2}.get(stage, [stage] * 2)


@pytest.mark.parametrize(("rule", "value"), POINTS)
def test_a_loaded_model_is_at_the_operating_point_that_it_was_saved_at(rule, value, tmp_path):
    path, model = tmp_path / "model.safetensors", make_routed()
    set_operating_point(model, rule, value)
    save_model(path, model, ROUTED)
    loaded, _ = load_model(path)
    assert operating_point(loaded) == operating_point(model)
    assert torch.equal(loaded(make_inputs()), model(make_inputs()))


def test_every_layer_comes_back_at_its_own_operating_point(tmp_path):
    path, model = tmp_path / "model.safetensors", make_routed()
    first, last = find(model, MoE).values()
    first.operating_point, last.operating_point = ("dynamic_k", 0.1), ("top_k", 3)
    save_model(path, model, ROUTED)
    assert [*operating_point(load_model(path)[0]).values()] == [("dynamic_k", 0.1), ("top_k", 3)]


def test_files_of_models_in_which_every_expert_runs_are_those_of_before(tmp_path):
    """The workflow's: they hold a spec alone, and load with every expert on."""
    path = tmp_path / "model.safetensors"
    save_model(path, make_routed(), ROUTED)
    tensors, metadata = load_tensors(path, "")
    assert "operating_points" not in metadata
    save_tensors(path, tensors, {"spec": metadata["spec"]})
    assert {*operating_point(load_model(path)[0]).values()} == {("dynamic_k", 0.0)}


@pytest.mark.parametrize(
    "points",
    [
        "{",
        "[1]",
        "3",
        '{"encoder": ["top_k", 3]}',
        '{"nowhere": ["top_k", 3]}',
        '{"NAME": ["top", 3]}',
    ]
    + ['{"NAME": ["top_k", 99]}', '{"NAME": ["dynamic_k", NaN]}', '{"NAME": "top_k"}'],
)
def test_impossible_operating_points_are_refused(points, tmp_path):
    path, model = tmp_path / "model.safetensors", make_routed()
    save_model(path, model, ROUTED)
    tensors, metadata = load_tensors(path, "")
    points = points.replace("NAME", next(iter(find(model, MoE))))
    save_tensors(path, tensors, {"spec": metadata["spec"], "operating_points": points})
    with pytest.raises(CheckpointError, match="impossible operating points"):
        load_model(path)


GENERATION = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
ANOTHER_PROCESS = f"""
import sys
from pathlib import Path
import torch
from d2dmoe.checkpoint import load_model
from d2dmoe.moe import set_selection
from d2dmoe.io.tensors import load_tensors, save_tensors

torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    model, _ = load_model(folder / "model")
    set_selection(model, "dynamic_k", 0.5)
    ids = load_tensors(folder / "inputs", "")[0]["ids"]
    found = {{"logits": model(input_ids=ids).logits}}
    if model.can_generate():
        mask = torch.ones_like(ids[:, :4])
        found["text"] = model.generate(ids[:, :4], attention_mask=mask, **{GENERATION})
    save_tensors(folder / "outputs", found, {{"class": type(model).__name__}})
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A folder of each language model, saved here and run in another process."""
    root = tmp_path_factory.mktemp("models")
    for name in TINY:
        spec = with_experts(language_spec(name, activation="relu"))
        model = make_routed_language(name)
        save_model(root / name / "model", model, with_routers(spec, width=WIDTH))
        save_tensors(root / name / "inputs", {"ids": make_tokens()})
    folders = [str(root / name) for name in TINY]
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, *folders], check=True)
    return root


@pytest.mark.workflow
@pytest.mark.parametrize("name", TINY)
def test_a_converted_language_model_is_the_same_in_another_process(elsewhere, name):
    found, metadata = load_tensors(elsewhere / name / "outputs", "")
    model, ids = make_routed_language(name, tau=0.5), make_tokens()
    assert metadata["class"] == type(model).__name__
    assert torch.equal(found["logits"], model(input_ids=ids).logits)
    assert ("text" in found) == (name in CAUSAL)
    if name in CAUSAL:
        prompt = ids[:, :4]
        text = model.generate(prompt, attention_mask=torch.ones_like(prompt), **GENERATION)
        assert text.shape == (3, 9) and torch.equal(found["text"], text)


@pytest.mark.workflow
def test_classes_of_transformers_come_back_as_themselves(elsewhere):
    names = {name: load_tensors(elsewhere / name / "outputs", "")[1]["class"] for name in TINY}
    assert names == {
        "bert": "BertForSequenceClassification",
        "gpt2": "GPT2LMHeadModel",
        "gemma": "GemmaForCausalLM",
    }


def with_activation(spec: ModelSpec, name: str) -> ModelSpec:
    return spec.model_copy(update={"activation": name})


def sparsified(spec: ModelSpec, name: str) -> ModelSpec:
    return spec.with_part("sparsify", activation=name)


@pytest.mark.parametrize("changed", others_later([with_activation, sparsified], [sparsified]))
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "gelu"])
def test_a_model_comes_back_with_its_activation(tmp_path, activation, changed):
    path, model = tmp_path / "model.safetensors", make_dense()
    own = model(make_inputs())
    set_activation(model, activation)
    save_model(path, model, changed(SPEC, activation))
    other = model(make_inputs())
    assert not torch.equal(other, own)
    assert torch.equal(load_model(path)[0](make_inputs()), other)
    assert torch.equal(load_dense_model(path)[0](make_inputs()), other)


def test_normalisation_and_classes_travel_with_the_model(tmp_path):
    save_model(tmp_path / "model", make_dense(), SPEC)
    spec, tensors = read_model(tmp_path / "model")
    assert spec.data == ABOUT
    assert tensors.keys() == make_dense().state_dict().keys()


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_model(tmp_path / name, make_routed(), ROUTED)
    save_model(tmp_path / "again", load_model(tmp_path / "one")[0], ROUTED)
    one, two, again = ((tmp_path / name).read_bytes() for name in ("one", "two", "again"))
    assert one == two == again


@pytest.mark.parametrize("load", [load_model, load_dense_model])
@pytest.mark.parametrize("keep", [0, 6, 500, -1])
def test_a_truncated_model_is_an_error_that_names_file_and_remedy(tmp_path, load, keep):
    path = tmp_path / "model.safetensors"
    save_model(path, make_dense(), SPEC)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is damaged.*Delete it"):
        load(path)


@pytest.mark.parametrize("load", [load_model, load_dense_model])
def test_a_missing_model_and_one_that_is_none_are_errors(tmp_path, load):
    with pytest.raises(CheckpointError, match="nothing does not exist"):
        load(tmp_path / "nothing")
    for metadata in ({}, {"spec": "{}"}, {"spec": "no JSON"}):
        save_tensors(tmp_path / "tensors", {"weight": torch.ones(2)}, metadata)
        with pytest.raises(CheckpointError, match="tensors is not a model saved by this package"):
            load(tmp_path / "tensors")


def test_weights_that_do_not_fit_their_spec_are_an_error(tmp_path):
    save_model(tmp_path / "model", make_dense(), SPLIT)
    with pytest.raises(CheckpointError, match="model does not fit its own spec"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("stage", ["split", "regression"])
def test_a_split_model_is_not_taken_for_a_dense_one(tmp_path, stage):
    make, spec = MODELS[stage]
    save_model(tmp_path / "model", make(), spec)
    made = "dense, clustering" + (", router" if stage == "regression" else "")
    message = f"model holds a model made by {made}; a dense one is needed"
    with pytest.raises(CheckpointError, match=message):
        load_dense_model(tmp_path / "model")


def test_conversion_keeps_the_quality_of_the_dense_model():
    images, cpu = make_images(40), torch.device("cpu")
    dense, split = (quality(make(), images, 16, cpu) for make in (make_dense, make_split))
    assert dense["accuracy"] == split["accuracy"]
    assert dense["loss"] == pytest.approx(split["loss"], rel=1e-5)


ORDERS = [["sparsify", "projections", "clustering"], ["projections", "sparsify", "clustering"]]


@pytest.mark.parametrize("order", ORDERS)
def test_a_spec_comes_back_with_its_parts_in_their_order(tmp_path, order):
    values = {
        "sparsify": {"activation": "relu"},
        "projections": {"widths": {"q": 8, "v": 8}},
        "clustering": {"num_experts": {"ffn": 8, "q": 2, "v": 4}},
    }
    spec = SPEC
    for stage in order:
        spec = spec.with_part(stage, **values[stage])
    save_model(tmp_path / "model", build(spec), spec)
    found, _tensors = read_model(tmp_path / "model")
    assert found == spec and list(found.parts) == order
    assert list(found.parts.values()) == [values[stage] for stage in order]
    assert SPEC.parts == {}  # the spec of the parent stays what it was


def test_the_parts_of_a_spec_are_rebuilt_in_their_order():
    """The layer of a sparsified model whose projections are MLPs, and the other way round."""
    before = SPEC.with_part("sparsify", activation="silu").with_part("projections", widths={"q": 8})
    after = SPEC.with_part("projections", widths={"q": 8}).with_part("sparsify", activation="silu")
    for spec, of_projection in ((before, "relu"), (after, "silu")):
        found = {(ffn.role, ffn.activation_name) for ffn in find(build(spec), FFN).values()}
        assert found == {("ffn", "silu"), ("q", of_projection)}


def test_a_part_that_a_stage_leaves_again_is_the_last():
    spec = sparsified(sparsified(SPEC, "relu").with_part("projections", widths={"q": 8}), "silu")
    assert list(spec.parts) == ["projections", "sparsify"]
    assert spec.parts["sparsify"] == {"activation": "silu"}


def test_a_part_tells_what_its_stage_left_and_one_that_is_not_there_who_made_the_model():
    path = Path("a/model.safetensors")
    assert ROUTED.part("clustering", path) == {"num_experts": {"ffn": 8}}
    message = (
        "a/model.safetensors holds a model that the stage ztw has not made; it was made by dense, "
        "clustering, router"
    )
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        ROUTED.part("ztw", path)


def test_a_stage_that_made_a_model_is_not_new_to_it():
    path = Path("a/model.safetensors")
    SPEC.check_new("quantize", path)
    message = "a/model.safetensors holds a model that the stage quantize has made already"
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        SPEC.with_part("quantize", weights="int8").check_new("quantize", path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_is_dense_as_long_as_every_stage_left_it_so(stage):
    spec, path = SPEC.with_part(stage).with_part("sparsify"), Path("model")
    if STAGES[stage].dense:
        spec.check_dense(path)
        return
    made = f"model holds a model made by dense, {stage}, sparsify; a dense one is needed"
    with pytest.raises(CheckpointError, match=f"^{made}$"):
        spec.check_dense(path)


UNKNOWN = {  # to the table of each kind of name
    "architecture": ({"architecture": "llama"}, "'llama'", ARCHITECTURES),
    "activation": ({"activation": "mish"}, "'mish'", ACTIVATIONS),
    "stage": ({"parts": {"spin": {}}}, "'spin'", STAGES),
    "router kind": (with_routers(SPLIT, "guess").model_dump(), "'guess'", ROUTER_KINDS),
}


@pytest.mark.parametrize("load", [load_model, load_dense_model])
@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_no_table_has_is_an_error_that_names_file_and_allowed_names(tmp_path, load, kind):
    change, name, table = UNKNOWN[kind]
    path = tmp_path / "model.safetensors"
    text = json.dumps(SPEC.model_dump() | change)
    save_tensors(path, make_dense().state_dict(), {"spec": text})
    message = f"{path} cannot be rebuilt: unknown {kind} {name}; allowed: {', '.join(table)}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load(path)


def test_a_spec_takes_no_part_of_an_unknown_stage_and_no_unknown_key():
    with pytest.raises(UnknownName, match=f"unknown stage 'spin'; allowed: {', '.join(STAGES)}"):
        SPEC.with_part("spin")
    for change in ({"num_experts": 8}, {"parts": {"router": 6}}, {"architecture": 1}):
        with pytest.raises(ValidationError):
            ModelSpec.model_validate(SPEC.model_dump() | change)
