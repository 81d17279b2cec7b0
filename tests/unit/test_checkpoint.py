"""Laws of saved models: what is loaded is what was saved, or a clear error."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import ABOUT, SPEC, make_dense, make_images, make_inputs, make_routed, make_split
from small_language import (
    CAUSAL,
    EXPERTS,
    TINY,
    WIDTH,
    language_spec,
    make_routed_language,
    make_tokens,
)

from d2dmoe.checkpoint import RouterSpec, load_dense_model, read_model, save_model
from d2dmoe.conversion import load_model
from d2dmoe.errors import CheckpointError
from d2dmoe.evaluate import quality
from d2dmoe.io.tensors import load_tensors, save_tensors
from d2dmoe.moe import MoE, set_selection
from d2dmoe.sparsity import set_activation
from d2dmoe.surgery import find

SPLIT = SPEC.with_(num_experts=8)
STAGES = {
    "dense": (make_dense, SPEC),
    "split": (make_split, SPLIT),
    "regression": (make_routed, SPLIT.with_(router={"kind": "regression", "width": 6})),
    "classification": (
        lambda: make_routed(kind="classification"),
        SPLIT.with_(router={"kind": "classification", "width": 6}),
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_models_of_every_stage_come_back_with_equal_outputs(stage, tmp_path):
    make, spec = STAGES[stage]
    path, model = tmp_path / "model.safetensors", make()
    save_model(path, model, spec)
    loaded, its_spec = load_model(path)
    assert its_spec == spec and not loaded.training
    for tau in (0.0, 0.3):
        set_selection(model, "dynamic_k", tau)
        set_selection(loaded, "dynamic_k", tau)
        assert torch.equal(loaded(make_inputs()), model(make_inputs()))
    kinds = [m.router and m.router.kind for m in find(loaded, MoE).values()]
    assert kinds == {"dense": [], "split": [None] * 2}.get(stage, [stage] * 2)


GENERATION = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
ANOTHER_PROCESS = f"""
import sys
from pathlib import Path
import torch
from d2dmoe.conversion import load_model
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
    router = {"kind": "regression", "width": WIDTH}
    for name in TINY:
        spec = language_spec(name, activation="relu", num_experts=EXPERTS, router=router)
        save_model(root / name / "model", make_routed_language(name), spec)
        save_tensors(root / name / "inputs", {"ids": make_tokens()})
    folders = [str(root / name) for name in TINY]
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, *folders], check=True)
    return root


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


def test_classes_of_transformers_come_back_as_themselves(elsewhere):
    names = {name: load_tensors(elsewhere / name / "outputs", "")[1]["class"] for name in TINY}
    assert names == {
        "bert": "BertForSequenceClassification",
        "gpt2": "GPT2LMHeadModel",
        "gemma": "GemmaForCausalLM",
    }


def test_a_relu_model_comes_back_with_relu(tmp_path):
    path, model = tmp_path / "model.safetensors", make_dense()
    gelu = model(make_inputs())
    set_activation(model, "relu")
    save_model(path, model, SPEC.with_(activation="relu"))
    relu = model(make_inputs())
    assert not torch.allclose(relu, gelu)
    assert torch.equal(load_model(path)[0](make_inputs()), relu)
    assert torch.equal(load_dense_model(path)[0](make_inputs()), relu)


def test_normalisation_and_classes_travel_with_the_model(tmp_path):
    save_model(tmp_path / "model", make_dense(), SPEC)
    spec, tensors = read_model(tmp_path / "model")
    assert spec.data == ABOUT
    assert tensors.keys() == make_dense().state_dict().keys()


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_model(tmp_path / name, make_routed(), STAGES["regression"][1])
    save_model(tmp_path / "again", load_model(tmp_path / "one")[0], STAGES["regression"][1])
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
    make, spec = STAGES[stage]
    save_model(tmp_path / "model", make(), spec)
    with pytest.raises(CheckpointError, match="model holds a model that was split already"):
        load_dense_model(tmp_path / "model")


def test_conversion_keeps_the_quality_of_the_dense_model():
    images, cpu = make_images(40), torch.device("cpu")
    dense, split = (quality(make(), images, 16, cpu) for make in (make_dense, make_split))
    assert dense["accuracy"] == split["accuracy"]
    assert dense["loss"] == pytest.approx(split["loss"], rel=1e-5)


def test_specs_are_checked_when_they_are_changed():
    assert SPEC.with_(router=RouterSpec(kind="regression", width=6)).router.width == 6
    with pytest.raises(ValueError):
        SPEC.with_(num_experts="8")
