"""Laws of tasks of one's own data and weights: what is known of them need not be written."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from jsonschema import Draft202012Validator
from safetensors.torch import save_file
from shipped import SHIPPED, shipped
from small_texts import make_texts
from test_config import put

from d2dmoe.claims import CLAIMS
from d2dmoe.claims.evidence import evidence_of
from d2dmoe.claims.ledger import OWN, ledger
from d2dmoe.config.data import data_config
from d2dmoe.config.model import VIT_SIDES, VITS, ViTConfig
from d2dmoe.config.schema import schema_text
from d2dmoe.config.strict import Strict
from d2dmoe.data.images import choose_validation, tenth
from d2dmoe.data.text_splits import load_texts
from d2dmoe.errors import UserError
from d2dmoe.plan.claims import claim_options
from d2dmoe.plan.defaults import completed
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.usual import EXPERTS, expert_size
from d2dmoe.selection_rules import RULES
from d2dmoe.tables import COLUMNS

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/own-model.md").read_text(), re.DOTALL)

CONFIGS = {  # what config.json says as transformers writes it, and what that is here
    "bert": (
        {"num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 4}
        | {"intermediate_size": 384, "max_position_embeddings": 64, "hidden_act": "gelu"},
        {"layers": 2, "d_model": 96, "heads": 4, "d_ff": 384, "positions": 64},
    ),
    "gpt2": (
        {"n_layer": 2, "n_embd": 96, "n_head": 4, "n_inner": None, "n_positions": 512}
        | {"activation_function": "gelu_new"},
        {"layers": 2, "d_model": 96, "heads": 4, "d_ff": 384, "positions": 512},
    ),
    "gemma": (
        {"num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 4, "head_dim": 24}
        | {"num_key_value_heads": 1, "intermediate_size": 512, "max_position_embeddings": 32},
        {"layers": 2, "d_model": 96, "heads": 4, "d_ff": 512, "positions": 32}
        | {"head_dim": 24, "key_value_heads": 1},
    ),
}
VIT = {"patch_size": 16, "layers": 12, "d_model": 768, "heads": 12, "d_ff": 3072}  # ViT-B/16


def save_checkpoint(folder: Path, architecture: str, **changes: Any) -> None:
    """A folder as `save_pretrained` writes it, as far as the plan reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": architecture} | CONFIGS[architecture][0] | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    blocks = {f"model.layers.{i}.mlp.weight": torch.zeros(1) for i in range(2)}
    save_file(blocks, folder / "model.safetensors")


def save_vit(path: Path, side: int = 224, **changes: int) -> None:
    """A state dict with the names and shapes of torchvision's, as far as the plan reads it."""
    sizes = VIT | changes
    width, patch = sizes["d_model"], sizes["patch_size"]
    shapes = {"class_token": (1, 1, width), "conv_proj.weight": (1, 1, patch, patch)}
    shapes["encoder.pos_embedding"] = (1, (side // patch) ** 2 + 1, 1)
    shapes["encoder.layers.encoder_layer_0.mlp.0.weight"] = (sizes["d_ff"], 1)
    for i in range(sizes["layers"]):
        shapes[f"encoder.layers.encoder_layer_{i}.ln_1.bias"] = (1,)
    path.parent.mkdir(exist_ok=True)
    save_file({name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}, path)


@pytest.fixture
def folders(root) -> Path:
    """The root with the folders that docs/own-model.md names."""
    (root / "my/texts").mkdir(parents=True)
    for name in ("train", "test"):
        (root / f"my/texts/{name}.csv").write_text("text,label\na,b\n")
    (root / "my/corpus.txt").write_text("one\n\ntwo\n")
    (root / "images").rename(root / "my/images")
    for architecture in CONFIGS:
        save_checkpoint(root / "my" / architecture, architecture)
    save_vit(root / "my/vit.safetensors")
    return root


SOURCES = {"bert": "texts", "gpt2": "corpus.txt", "gemma": "texts", "vit": "images"}
KINDS = {"bert": "texts", "gpt2": "corpus", "gemma": "corpus", "vit": "images"}


def short(architecture: str) -> dict[str, Any]:
    """The shortest configuration of an architecture."""
    weights = "path:my/" + ("vit.safetensors" if architecture == "vit" else architecture)
    task = {"data": {"source": f"path:my/{SOURCES[architecture]}"}, "model": {"weights": weights}}
    if architecture == "gpt2":  # a single file
        task["data"]["test"] = 1
    return {"seeds": [0], "tasks": {"mine": task}}


def mine(raw: dict) -> dict:
    return raw["tasks"]["mine"]


def refusal(raw: dict, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_plan(raw, root)
    return str(caught.value)


any_architecture = pytest.mark.parametrize("architecture", [*CONFIGS, "vit"])
of_transformers = pytest.mark.parametrize("architecture", CONFIGS)


# What is enough.


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split()[3])
def test_the_documents_examples_are_short_and_can_be_planned(text, folders):
    assert len(text.splitlines()) <= 12
    raw = yaml.safe_load(text)
    assert load_plan(raw, folders).steps
    Draft202012Validator(json.loads(schema_text())).validate(raw)


def test_there_is_an_example_of_texts_a_corpus_and_images(folders):
    tasks = [load_plan(yaml.safe_load(text), folders).config.tasks for text in EXAMPLES]
    assert {task.data.kind for own in tasks for task in own.values()} == {*KINDS.values()}


@any_architecture
def test_the_weights_say_what_the_model_is_and_the_model_which_data_it_takes(architecture, folders):
    task = load_plan(short(architecture), folders).config.tasks["mine"]
    sizes = VIT if architecture == "vit" else CONFIGS[architecture][1]
    assert task.model.architecture == architecture
    assert {key: getattr(task.model, key) for key in sizes} == sizes
    assert task.data.kind == KINDS[architecture]
    if architecture == "vit":
        assert task.data.image_size == 224
    else:
        assert task.data.tokenizer.source == f"path:my/{architecture}"
        assert task.data.length <= sizes["positions"]


@any_architecture
def test_what_is_filled_in_counts_as_written(architecture, folders):
    raw = short(architecture)
    whole = completed(raw, folders)
    assert completed(whole, folders) == whole and raw == short(architecture)
    short_plan, whole_plan = (load_plan(x, folders) for x in (raw, whole))
    assert short_plan.config == whole_plan.config
    assert list(short_plan.steps) == list(whole_plan.steps)


def omissible(options: type[Strict], section: dict) -> list[str]:
    return [key for key in options.model_fields if options.completes(key) and key in section]


@any_architecture
def test_whatever_may_be_left_out_alone_is_filled_in(architecture, folders):
    whole = completed(short(architecture), folders)
    task = load_plan(whole, folders).config.tasks["mine"]
    sections = {name: getattr(task, name) for name in ("data", "model", "dense", "sparsify")}
    sections |= {"clustering": task.clustering, "router": task.router}
    left_out = [f"tasks.mine.{key}" for key in omissible(type(task), mine(whole))]
    for name, options in sections.items():
        found = omissible(type(options), mine(whole)[name])
        left_out += [f"tasks.mine.{name}.{key}" for key in found]
    assert len(left_out) > 20
    for key in left_out:
        assert completed(without(whole, key), folders) == whole, key


def without(raw: dict, dotted: str) -> dict:
    raw = copy.deepcopy(raw)
    *parents, last = dotted.split(".")
    place = raw
    for key in parents:
        place = place[key]
    del place[last]
    return raw


@pytest.mark.parametrize("name", SHIPPED)
def test_configurations_that_say_it_all_stay_as_they_are(name, tmp_path):
    """None of their weights is looked at: there are none in the folder."""
    raw = shipped(name)
    assert completed(raw, tmp_path) == raw


@any_architecture
def test_a_model_from_scratch_needs_all_its_sizes(architecture, folders):
    raw = completed(short(architecture), folders)
    del mine(raw)["model"]["weights"], mine(raw)["model"]["d_ff"], mine(raw)["dense"]["lr"]
    message = refusal(raw, folders)
    assert "model.d_ff: missing; it is required where the weights do not say it" in message
    assert "dense.lr: missing; it is required unless model.weights are given" in message


def test_a_student_of_given_weights_needs_no_sizes(folders):
    student = {"kind": "distill", "label": "s", "epochs": 1, "lr": 0.1}
    student["model"] = {"weights": "path:my/bert"}
    raw = short("bert")
    mine(raw)["bases"] = {"student": student}
    assert load_plan(raw, folders).config.tasks["mine"].bases["student"].model.d_ff == 384


@pytest.mark.parametrize("rule", RULES)
def test_a_variant_may_select_by_any_rule_without_its_points(rule, folders):
    variant = {"method": "d2dmoe", "label": "x", "select": rule}
    raw = put(short("bert"), "tasks.mine.variants", {"own": variant})
    points = getattr(load_plan(raw, folders).config.tasks["mine"].select, rule)
    assert len(points) >= 5 and sorted(set(points)) == points


@any_architecture
@pytest.mark.parametrize("given", [{}, {"clustering": {"expert_size": 8}, "router": {"width": 8}}])
def test_attention_projections_are_one_word_more(architecture, given, folders):
    variant = {"method": "d2dmoe", "label": "x", "projections": {}}
    raw = put(short(architecture), "tasks.mine.variants", {"own": variant})
    mine(raw).update(given)
    steps = {s.stage.name: s.cfg for s in load_plan(raw, folders).line("main", "mine", "own").steps}
    assert list(steps) == ["dense", "projections", "sparsify", "clustering", "router"]
    usual = load_plan(short(architecture), folders).line("main", "mine", "d2dmoe").steps
    after_the_dense = sum(getattr(step.cfg, "epochs", 0) for step in usual[1:])
    assert sum(getattr(cfg, "epochs", 0) for cfg in list(steps.values())[1:]) == after_the_dense


def test_so_they_are_in_another_suite(folders):
    variant = {"method": "d2dmoe", "label": "x", "projections": {}}
    own = {"variants": {"own": variant}, "figures": {"phases": ["d2dmoe", "own"]}}
    plan = load_plan(put(short("bert"), "tasks.mine.ablations", own), folders)
    assert plan.line("ablations", "mine", "own").step_of("projections").cfg.epochs > 0


@pytest.mark.parametrize("d_ff", [1, 7, 23, 24, 384, 1536, 3072, 3073, 8960, 16384])
def test_experts_are_as_large_as_leaves_enough_of_them(d_ff):
    size = expert_size(d_ff)
    assert d_ff % size == 0 and d_ff // size >= min(EXPERTS, d_ff)
    larger = [n for n in range(size + 1, d_ff) if d_ff % n == 0]
    assert all(d_ff // n < EXPERTS for n in larger)


# What is given.


@of_transformers
def test_an_option_may_be_given_but_not_against_the_weights(architecture, folders):
    sizes = {"architecture": architecture} | CONFIGS[architecture][1]
    for key, size in sizes.items():
        given = put(short(architecture), f"tasks.mine.model.{key}", size)
        assert load_plan(given, folders).config == load_plan(short(architecture), folders).config
        other = "bert" if architecture != "bert" else "gpt2"
        wrong = other if key == "architecture" else size + 1
        message = refusal(put(given, f"tasks.mine.model.{key}", wrong), folders)
        assert f"{key} {size} (configured: {wrong})" in message


@pytest.mark.parametrize("key", [*VIT, "image_size"])
@pytest.mark.parametrize("weights", ["path:my/vit.safetensors", "torchvision:vit_b_16:DEFAULT"])
def test_nor_against_those_of_a_vit(weights, key, folders):
    raw = put(short("vit"), "tasks.mine.model.weights", weights)
    right = (VIT | {"image_size": 224})[key]
    place = f"tasks.mine.{'data' if key == 'image_size' else 'model'}.{key}"
    assert load_plan(put(raw, place, str(right)), folders).steps  # as the command line gives it
    message = refusal(put(raw, place, 7), folders)
    assert weights in message and f"{right}" in message and "7" in message


def test_given_options_of_a_section_win_over_the_usual(folders):
    raw = put(short("gpt2"), "tasks.mine.sparsify", {"alpha": 0.5})
    raw = put(raw, "tasks.mine.select", {"dynamic_k": [0.25]})
    raw = put(raw, "tasks.mine.data.validation", 3)
    task = load_plan(raw, folders).config.tasks["mine"]
    assert (task.sparsify.alpha, task.sparsify.mode) == (0.5, "relu_hoyer")
    assert (task.select.dynamic_k, task.data.validation) == ([0.25], 3)


def test_torchvisions_models_are_its_own():
    from torchvision.models import get_model, get_model_weights

    for model in VITS:
        for name, weights in get_model_weights(model).__members__.items():
            said = ViTConfig.said_by_torchvision(f"{model}:{name}")
            assert [said["image_size"]] * 2 == list(weights.meta["min_size"])
    with torch.device("meta"):
        made = get_model("vit_b_32")
    said = ViTConfig.said_by_torchvision("vit_b_32:DEFAULT")
    assert said["heads"] == made.encoder.layers[0].self_attention.num_heads
    shapes = {key: list(value.shape) for key, value in made.state_dict().items()}
    assert ViTConfig.said_by(shapes) == said
    assert {key.partition(":")[0] for key in VIT_SIDES} <= VITS.keys()


def test_heads_that_no_shape_says_are_asked_for(folders):
    save_vit(folders / "my/vit.safetensors", d_model=96, d_ff=384)
    assert "model.heads: missing; it is required where the w" in refusal(short("vit"), folders)
    assert load_plan(put(short("vit"), "tasks.mine.model.heads", 4), folders).steps


def test_a_model_that_torchvision_has_not_is_named_with_those_that_it_has(folders):
    raw = put(short("vit"), "tasks.mine.model.weights", "torchvision:resnet50:DEFAULT")
    message = refusal(raw, folders)
    assert "torchvision:resnet50:DEFAULT" in message and "vit_b_16, vit_b_32" in message


# Tokens.


@pytest.mark.parametrize("token", ["<pad>", {"content": "<pad>", "special": True}])
def test_the_special_token_is_the_checkpoints(token, folders):
    path = folders / "my/bert/tokenizer_config.json"
    path.write_text(json.dumps({"pad_token": token, "eos_token": "</s>"}))
    tokenizer = load_plan(short("bert"), folders).config.tasks["mine"].data.tokenizer
    assert (tokenizer.pad, tokenizer.end_of_text) == ("<pad>", "<|endoftext|>")


@pytest.mark.parametrize("config", [{}, {"pad_token": None}, {"pad_token": [1]}, {"pad_token": ""}])
def test_where_it_says_none_the_usual_one_is_taken(config, folders):
    (folders / "my/bert/tokenizer_config.json").write_text(json.dumps(config))
    assert load_plan(short("bert"), folders).config.tasks["mine"].data.tokenizer.pad == "[PAD]"


# What cannot be read.


@of_transformers
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff" * 99, b"[1]", b"9" * 20])
def test_a_damaged_config_is_named(architecture, content, folders):
    path = folders / "my" / architecture / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    message = refusal(short(architecture), folders)
    assert message.startswith(f"path:my/{architecture} cannot be read: ")
    assert "path:FOLDER" in message


@pytest.mark.parametrize("content", [b"", b"\xff" * 99, b'\x11\0\0\0\0\0\0\0{"a":{"shape":3}}'])
def test_a_damaged_file_of_a_vit_is_named(content, folders):
    (folders / "my/vit.safetensors").write_bytes(content)
    assert "path:my/vit.safetensors cannot be read: " in refusal(short("vit"), folders)


@pytest.mark.parametrize("kind", ["llama", "vit", None, 3, ["bert"]])
def test_an_architecture_that_is_not_described_is_named_with_those_that_are(kind, folders):
    save_checkpoint(folders / "my/bert", "bert", model_type=kind)
    message = refusal(short("bert"), folders)
    assert f"'{kind}', which is not described" in message and "bert, gpt2, gemma" in message


@of_transformers
def test_an_activation_that_is_not_described_is_refused_before_the_first_job(architecture, folders):
    key = "activation_function" if architecture == "gpt2" else "hidden_act"
    save_checkpoint(folders / "my" / architecture, architecture, **{key: "mish"})
    assert "the activation 'mish' is not described" in refusal(short(architecture), folders)


@pytest.mark.parametrize("size", [None, "many", -1, 0, [2]])
def test_a_size_that_is_none_is_a_fault_of_the_section(size, folders):
    save_checkpoint(folders / "my/bert", "bert", intermediate_size=size)
    message = refusal(short("bert"), folders)
    assert message.count("\n") == 1 and "tasks.mine.model.d_ff" in message


# The hub.


@pytest.fixture
def cache(folders, monkeypatch) -> Path:
    """The cache of the hub's client, which holds what a checkpoint says, without any network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folders / "cache"))
    place = folders / "cache/models--me--own"
    save_checkpoint(place / "snapshots/abc", "gpt2")
    (place / "refs").mkdir()
    for revision in ("main", "v1"):
        (place / "refs" / revision).write_text("abc")
    (place / ".no_exist/abc").mkdir(parents=True)
    (place / ".no_exist/abc/tokenizer_config.json").touch()
    return place


@pytest.mark.parametrize("name", ["me/own", "me/own@v1"])
def test_what_the_hub_gave_once_is_read_from_its_cache(name, cache, folders):
    raw = put(short("gpt2"), "tasks.mine.model.weights", f"hub:{name}")
    task = load_plan(raw, folders).config.tasks["mine"]
    assert (task.model.layers, task.data.tokenizer.source) == (2, f"hub:{name}")
    wrong = put(raw, "tasks.mine.model.layers", 3)
    assert "layers 2 (configured: 3)" in refusal(wrong, folders)


@pytest.mark.parametrize("name", ["me/other", "me/own@v2", "not a name"])
def test_what_it_does_not_hold_needs_a_network_or_other_ways(name, cache, folders):
    raw = put(short("gpt2"), "tasks.mine.model.weights", f"hub:{name}")
    message = refusal(raw, folders)
    assert f"hub:{name}: config.json" in message and "cannot be fetched" in message
    assert "path:FOLDER" in message and "yourself" in message
    whole = put(completed(short("gpt2"), folders), "tasks.mine.model.weights", f"hub:{name}")
    assert load_plan(whole, folders).steps  # what is written is not asked for


def test_a_folder_may_be_named_as_the_hub_names_it(folders):
    raw = put(short("gpt2"), "tasks.mine.model.weights", "hub:my/gpt2")
    assert load_plan(raw, folders).config.tasks["mine"].model.d_ff == 384


# What is held out where no number is given.


def test_a_tenth_of_the_images_is_held_out_in_equal_shares():
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 4)
    assert tenth(labels, 3) == 6  # half of the smallest class
    assert tenth(labels[:100], 2) == 10 and tenth(labels[-6:], 3) == 0 + 3
    for count in (20, 60, 101):
        held_out = choose_validation(labels[:100], tenth(labels[:100], 2), 2, seed=count)
        assert labels[held_out].bincount().tolist() == [5, 5]


@pytest.mark.parametrize(("kind", "count"), [("texts", 4), ("corpus", 4), ("texts", 1)])
def test_a_tenth_of_the_texts_is_held_out(kind, count, tmp_path):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(make_texts(10 * count, 1))]
    for name, own in {"train": rows, "test": [{"text": "x", "label": 0}]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    tokenizer = {"source": "train", "vocab_size": 300}
    data = {"kind": kind, "source": "path:.", "length": 8, "tokenizer": tokenizer}
    sizes = [len(load_texts(data_config(data), p, tmp_path)[0]) for p in ("train", "validation")]
    assert sizes == [9 * count, count]


def test_a_stream_has_no_known_tenth():
    data = {"kind": "corpus", "source": "hub:a/b", "length": 8, "streaming": True}
    data["tokenizer"] = {"source": "hub:a/b"}
    with pytest.raises(ValueError, match="streaming needs validation"):
        data_config(data)


# Claims.


@pytest.mark.parametrize(
    ("source", "weights", "claims", "judged"),
    [
        ("vendored:fashion-mnist", None, None, True),
        ("vendored:fashion-mnist", None, False, False),
        ("vendored:fashion-mnist", "torchvision:vit_b_16:DEFAULT", None, False),
        ("path:images", None, None, False),
        ("path:images", None, True, True),
        ("hub:some/set", None, None, False),
    ],
)
def test_claims_are_judged_on_the_papers_experiments(raw, root, source, weights, claims, judged):
    task = raw["tasks"]["tiny"]
    task["data"]["source"], task["claims"] = source, claims
    if weights:
        task["data"] |= {"image_size": 224, "validation": 10}
        task["model"] = {"weights": weights}
    assert claim_options(load_plan(raw, root), "main")["tiny"]["judged"] is judged


def test_a_task_that_is_not_judged_decides_no_claim_and_says_why():
    import pandas as pd

    read = ("tradeoff", "summary", "comparisons")
    tables = {name: pd.DataFrame(columns=COLUMNS[name]) for name in read}
    rows = ledger([evidence_of("mine", tables, {}, "accuracy", judged=False)])
    tested = [row for row in rows if CLAIMS[row["claim"]].test]
    assert {row["claim"] for row in tested} == {name for name, x in CLAIMS.items() if x.test}
    assert {(row["where"], row["verdict"], row["evidence"]) for row in tested} == {
        ("mine", "not tested", OWN)
    }
