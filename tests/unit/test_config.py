"""Laws of the configuration: what cannot run is refused at once, in one message that says why."""

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from d2dmoe.config.experiment import Config, load_config
from d2dmoe.errors import ConfigError, DataError

DIVISORS_OF_32 = "[1, 2, 4, 8, 16, 32]"


def put(raw: dict, dotted: str, value: Any) -> dict:
    """A copy of `raw` with the value at a dotted key, whose numbers index lists."""
    raw = copy.deepcopy(raw)
    *parents, last = dotted.split(".")
    place = raw
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[int(last) if isinstance(place, list) else last] = value
    return raw


def with_language(raw: dict, architecture: str) -> dict:
    """A copy of `raw` whose task is of a language model."""
    raw = copy.deepcopy(raw)
    task = raw["tasks"]["tiny"]
    task["model"] = {"architecture": architecture, "layers": 2, "d_model": 16, "heads": 4}
    task["model"] |= {"d_ff": 32, "positions": 12}
    if architecture == "gemma":
        task["model"] |= {"head_dim": 5, "key_value_heads": 2}
    task["data"] = {"kind": "texts" if architecture == "bert" else "corpus", "length": 12}
    task["data"] |= {"source": "hub:some/set", "validation": 4}
    task["data"]["tokenizer"] = {"source": "train", "vocab_size": 300}
    del task["figures"]["load_maps"]
    return raw


LANGUAGES = ["bert", "gpt2", "gemma"]


@pytest.fixture(params=["vit", *LANGUAGES])
def architecture(request) -> str:
    return request.param


@pytest.fixture
def of_any(raw, architecture) -> dict:
    """A valid configuration of each architecture."""
    return raw if architecture == "vit" else with_language(raw, architecture)


def fault(raw: dict, root) -> str:
    """The one fault of a configuration."""
    with pytest.raises(ConfigError) as caught:
        load_config(raw, root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2  # a heading, and one line for the one fault
    return lines[1].strip()


def test_the_minimal_configuration_is_valid(raw, root):
    config = load_config(raw, root)
    assert config.seeds == [0, 1] and list(config.tasks) == ["tiny"]
    assert config.tasks["tiny"].split.method == "kmeans"  # a default


def test_seeds_may_be_text_as_the_command_line_gives_them(raw, root):
    raw["seeds"] = ["0", "2"]
    assert load_config(raw, root).seeds == [0, 2]


WRONG = [  # key, value, what the message must hold
    pytest.param(
        "tasks.tiny.sparsify.alhpa",
        0.1,
        ["tasks.tiny.sparsify.alhpa = 0.1", "unknown key", "did you mean 'alpha'?"]
        + ["allowed keys:", "alpha, ", "schedule", "weight_decay"],
        id="unknown key with a likely spelling",
    ),
    pytest.param(
        "tasks.tiny.variants.sparse.router.depth",
        3,
        ["tasks.tiny.variants.sparse.router.depth = 3", "allowed keys: epochs, kind, lr, width"],
        id="unknown key inside of a variant",
    ),
    pytest.param("sedes", 1, ["sedes = 1", "'seeds'", "runtime, seeds, tasks"], id="at the top"),
    pytest.param(
        "tasks.tiny.model.layers",
        "two",
        ["tasks.tiny.model.layers = 'two'", "valid integer"],
        id="wrong type",
    ),
    pytest.param(
        "tasks.tiny.model.layers", 2.0, ["layers = 2.0", "valid integer"], id="float for int"
    ),
    pytest.param(
        "tasks.tiny.data.in_memory", 1, ["in_memory = 1", "valid boolean"], id="int for bool"
    ),
    pytest.param(
        "tasks.tiny.sparsify.alpha",
        -0.1,
        ["tasks.tiny.sparsify.alpha = -0.1", "greater than or equal to 0"],
        id="negative alpha",
    ),
    pytest.param(
        "tasks.tiny.variants.sparse.sparsify.alpha",
        -0.1,
        ["variants.sparse.sparsify.alpha = -0.1", "greater than or equal to 0"],
        id="negative alpha in a variant",
    ),
    pytest.param(
        "tasks.tiny.select.dynamic_k.1",
        1.5,
        ["tasks.tiny.select.dynamic_k.1 = 1.5", "less than or equal to 1"],
        id="tau above 1",
    ),
    pytest.param(
        "tasks.tiny.select.dynamic_k.0",
        -0.5,
        ["tasks.tiny.select.dynamic_k.0 = -0.5", "greater than or equal to 0"],
        id="tau below 0",
    ),
    pytest.param(
        "tasks.tiny.split.expert_size",
        5,
        ["tasks.tiny", "split.expert_size = 5", "model.d_ff = 32", f"allowed: {DIVISORS_OF_32}"],
        id="expert size does not divide d_ff",
    ),
    pytest.param(
        "tasks.tiny.variants.random.split.expert_size",
        3,
        ["variant 'random'", "split.expert_size = 3", f"allowed: {DIVISORS_OF_32}"],
        id="a variant's expert size does not divide d_ff",
    ),
    pytest.param(
        "tasks.tiny.select.top_k.1",
        9,
        ["variant 'static'", "select.top_k = 9", "8 experts", "allowed: 1 to 8"],
        id="top_k above the experts",
    ),
    pytest.param(
        "tasks.tiny.variants.sparse.sparsify.epochs",
        7,
        ["variant 'sparse'", "sparsify.epochs + router.epochs = 9", "total is 5"],
        id="a variant trains longer",
    ),
    pytest.param(
        "tasks.tiny.figures.tradeoff",
        ["sparse", "nobody"],
        ["tasks.tiny", "figures.tradeoff", "'nobody'", "defined:", "'moefication'"],
        id="a figure of an undefined variant",
    ),
    pytest.param(
        "tasks.tiny.figures.load_maps.variant",
        "nobody",
        ["figures.load_maps", "'nobody'", "defined:"],
        id="load maps of an undefined variant",
    ),
    pytest.param(
        "tasks.tiny.model.patch_size",
        3,
        ["model.patch_size = 3", "data.image_size = 8", "allowed: [1, 2, 4, 8]"],
        id="patch size does not divide the image",
    ),
    pytest.param(
        "tasks.tiny.model.stem", [8], ["model.stem", "grid of 4", "grid of 2"], id="stem misses"
    ),
    pytest.param(
        "tasks.tiny.model.heads", 3, ["heads = 3", "d_model = 16"], id="heads do not divide"
    ),
    pytest.param(
        "tasks.tiny.model.weights",
        "imagenet",
        ["tasks.tiny.model.weights = 'imagenet'", "'scratch'", "torchvision:MODEL:WEIGHTS"],
        id="weights of no known form",
    ),
    pytest.param(
        "tasks.tiny.sparsify.mode",
        "relu",
        ["tasks.tiny.sparsify.mode = 'relu'", "'relu_hoyer'", "'gelu_clamped'"],
        id="unknown mode",
    ),
    pytest.param(
        "tasks.tiny.variants.moefication.sparsify",
        {"alpha": 0.1},
        ["tasks.tiny.variants.moefication", "no penalty"],
        id="moefication with a penalty",
    ),
    pytest.param("seeds", [0, 1, 0], ["seeds = [0, 1, 0]", "given once"], id="repeated seeds"),
    pytest.param("seeds", [], ["seeds = []", "at least 1"], id="no seeds"),
    pytest.param(
        "tasks.tiny.dense.lr",
        "1e-3",
        ["tasks.tiny.dense.lr = '1e-3'", "YAML reads 1e-3 as text", "write 0.001"],
        id="YAML's 1e-3 is text",
    ),
    pytest.param(
        "tasks.tiny.data.source",
        "imagenet",
        ["tasks.tiny.data.source = 'imagenet'", "vendored:NAME", "path:FOLDER"],
        id="source of no known form",
    ),
]


@pytest.mark.parametrize(("key", "value", "parts"), WRONG)
def test_a_wrong_value_is_one_error_that_names_key_value_and_what_is_allowed(
    raw, root, key, value, parts
):
    line = fault(put(raw, key, value), root)
    for part in parts:
        assert part in line


def test_every_architecture_has_a_valid_minimal_configuration(of_any, architecture, root):
    task = load_config(of_any, root).tasks["tiny"]
    assert task.model.architecture == architecture and task.model.weights == "scratch"
    assert task.model.name == f"{architecture}-2x16"
    assert task.data.kind == task.model.data_kind


T = "tasks.tiny."
ANY = [  # what is wrong alike in every architecture: key, value, the message
    (T + "model.layers", "two", T + "model.layers = 'two': Input should be a valid integer"),
    (T + "model.d_fff", 3, T + "model.d_fff = 3: unknown key; did you mean 'd_ff'? (allowed keys:"),
    (T + "data.valdation", 3, T + "data.valdation = 3: unknown key; did you mean 'validation'?"),
    (T + "data.max_train", 0, T + "data.max_train = 0: Input should be greater than 0"),
    (
        T + "model.architecture",
        "llama",
        T + "model.architecture = 'llama': allowed are vit, bert, gpt2, gemma",
    ),
    (T + "data.kind", "sound", T + "data.kind = 'sound': allowed are images, texts, corpus"),
    (T + "data", "cifar", T + "data = 'cifar': Input should be a valid dictionary"),
    (T + "model.weights", "imagenet", T + "model.weights = 'imagenet': must be 'scratch', '"),
    (T + "model.activation", "silu", T + "model.activation = 'silu': Input should be 'gelu' or"),
    (T + "router.accumulate", 3, T + "router: accumulate = 3 must divide batch_size = 8"),
    (T + "dense.epochs", -0.5, T + "dense.epochs = -0.5: Input should be greater than or equal"),
]


@pytest.mark.parametrize(("key", "value", "message"), ANY, ids=[key for key, *_ in ANY])
def test_faults_are_named_by_the_users_own_keys_in_every_architecture(
    of_any, root, key, value, message
):
    assert fault(put(of_any, key, value), root).startswith(message)


@pytest.mark.parametrize(
    ("section", "key", "allowed"),
    [("data", "kind", "images, texts, corpus"), ("model", "architecture", "vit, bert, gpt2, gem")],
)
def test_what_tells_configurations_apart_must_be_there(of_any, root, section, key, allowed):
    del of_any["tasks"]["tiny"][section][key]
    assert fault(of_any, root).startswith(f"{T}{section}.{key}: missing; allowed: {allowed}")


WRONG_TEXT = [  # architectures, key, value, what the message must hold
    (
        LANGUAGES,
        "data.tokenizer.vocab_sise",
        9,
        [T + "data.tokenizer.vocab_sise = 9", "did you mean 'vocab_size'?", "end_of_text, pad"],
    ),
    (LANGUAGES, "data.length", 13, ["data.length = 13", "model.positions = 12"]),
    (LANGUAGES, "data.image_size", 8, [T + "data.image_size = 8: unknown key", "kind, "]),
    (LANGUAGES, "model.patch_size", 4, [T + "model.patch_size = 4: unknown key", "positions"]),
    (LANGUAGES, "figures.load_maps", {"variant": "sparse", "value": 0.5}, ["needs images"]),
    (["bert", "gpt2"], "model.heads", 3, [T + "model: heads = 3 must divide d_model = 16"]),
    (["gemma"], "model.heads", 3, [T + "model: key_value_heads = 2 must divide heads = 3"]),
    (["gemma"], "model.key_value_heads", 3, ["key_value_heads = 3 must divide heads = 4"]),
    (["bert", "gpt2"], "model.key_value_heads", 2, ["key_value_heads = 2: unknown key"]),
    (["gpt2", "gemma"], "data.label", "class", ["data.label = 'class': unknown key"]),
]


@pytest.mark.parametrize(
    ("name", "key", "value", "parts"),
    [(name, *rest) for names, *rest in WRONG_TEXT for name in names],
)
def test_wrong_values_of_language_models_are_named(raw, root, name, key, value, parts):
    line = fault(put(with_language(raw, name), T + key, value), root)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("stage", ["dense", "sparsify", "router"])
@pytest.mark.parametrize(
    ("key", "value"), [("augment", {"flip": True}), ("mixup", 1.0), ("cutmix", 0.1)]
)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_changes_of_images_are_refused_for_texts(raw, root, name, stage, key, value):
    line = fault(put(with_language(raw, name), f"{T}{stage}.{key}", value), root)
    kind = "texts" if name == "bert" else "corpus"
    assert line == f"tasks.tiny: {stage}.{key} changes images; data.kind is {kind}"


@pytest.mark.parametrize("name", LANGUAGES)
def test_an_architecture_takes_its_own_kind_of_data_only(raw, root, name):
    task = raw["tasks"]["tiny"]
    other = with_language(raw, name)["tasks"]["tiny"]
    kind = other["data"]["kind"]
    line = fault(put(raw, T + "model", other["model"]), root)
    assert line == (
        f"tasks.tiny: model.architecture {name} takes data of the kind {kind}, "
        "but data.kind is images"
    )
    line = fault(put(with_language(raw, name), T + "model", task["model"]), root)
    assert f"architecture vit takes data of the kind images, but data.kind is {kind}" in line


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ("scratch", ["vit", *LANGUAGES]),
        ("torchvision:vit_b_16:IMAGENET1K_V1", ["vit"]),
        ("torchvision:vit_b_16", []),
        ("path:some/where", ["vit", *LANGUAGES]),
        ("path:", []),
        ("hub:google/gemma-2b", LANGUAGES),
        ("hub:google/gemma-2b@abc123", LANGUAGES),
        ("hub:", []),
        ("scratch:1", []),
        ("", []),
    ],
)
def test_weights_are_named_in_the_forms_of_their_architecture(
    of_any, architecture, root, weights, names
):
    changed = put(of_any, T + "model.weights", weights)
    if architecture in names:
        assert load_config(changed, root).tasks["tiny"].model.weights == weights
    else:
        other = "'torchvision:MODEL:WEIGHTS'" if architecture == "vit" else "'hub:NAME@REVISION'"
        line = fault(changed, root)
        assert line.startswith(f"{T}model.weights = {weights!r}: must be 'scratch', ")
        assert other in line


def test_every_figure_but_the_tradeoff_may_be_left_out(of_any, root):
    of_any["tasks"]["tiny"]["figures"] = {"tradeoff": ["sparse"]}
    figures = load_config(of_any, root).tasks["tiny"].figures
    assert figures.variants() == {"tradeoff": ["sparse"]} | dict.fromkeys(
        ["base_sparsity", "active_neurons", "selection_rules"]
        + ["sparsity_levels", "activations", "expert_sizes"],
        [],
    )
    assert figures.layers is figures.load_maps is figures.layer_thresholds is None
    of_any["tasks"]["tiny"]["figures"] = {}
    assert fault(of_any, root) == f"{T}figures.tradeoff: missing; it is required"


@pytest.mark.parametrize("key", ["layers", "layer_thresholds"])
def test_panels_of_layers_are_of_measured_points_and_defined_variants(raw, root, key):
    good = {"variants": ["sparse", "sparser"], "values": [0.5]}
    figures = load_config(put(raw, f"{T}figures.{key}", good), root).tasks["tiny"].figures
    assert figures.variants()[f"{key}.variants"] == good["variants"]
    line = fault(put(raw, f"{T}figures.{key}", good | {"values": [0.3]}), root)
    assert f"figures.{key}.values: 0.3 is no operating point of the variant 'sparse'" in line
    assert "those of select.dynamic_k: [0.0, 0.5]" in line
    line = fault(put(raw, f"{T}figures.{key}", good | {"variants": ["nobody"]}), root)
    assert f"figures.{key}.variants names the variant 'nobody'" in line
    line = fault(put(raw, f"{T}figures.{key}", good | {"valeus": [0.5]}), root)
    assert f"figures.{key}.valeus = [0.5]: unknown key; did you mean 'values'?" in line


def test_labels_are_of_figures_and_variants_that_there_are(raw, root):
    line = fault(put(raw, T + "figures.labels.tradeoff", {"nobody": "x"}), root)
    assert "figures.labels.tradeoff names the variant 'nobody'" in line
    assert "figures.labels.trade" in fault(put(raw, T + "figures.labels.trade", {}), root)


@pytest.mark.parametrize(
    ("sparsify", "router", "same"),
    [(0.1, 0.2, True), (0.2, 0.1, True), (0.1, 0.3, False), (0.3, 0.0, True), (0.2, 0.2, False)],
)
def test_parts_of_epochs_add_up_to_the_tasks_total_but_for_rounding(
    raw, root, sparsify, router, same
):
    raw = put(put(raw, T + "sparsify.epochs", 0.3), T + "router.epochs", 0.0)
    changes = {"sparsify": {"epochs": sparsify}, "router": {"epochs": router}}
    raw["tasks"]["tiny"]["variants"]["sparse"] |= changes
    if same:
        stages = load_config(raw, root).tasks["tiny"].stages("sparse")
        assert (stages.sparsify.epochs, stages.router.epochs) == (sparsify, router)
    else:
        assert "sparsify.epochs + router.epochs = 0.4, but the task's total is 0.3" in fault(
            raw, root
        )


def test_a_missing_key_is_named(raw, root):
    del raw["tasks"]["tiny"]["model"]["d_ff"]
    with pytest.raises(ConfigError, match=r"tasks\.tiny\.model\.d_ff: missing"):
        load_config(raw, root)


def test_all_faults_come_in_one_message(raw, root):
    raw = put(put(raw, "tasks.tiny.dense.lr", -1), "tasks.tiny.model.layers", 0)
    with pytest.raises(ConfigError) as caught:
        load_config(raw, root)
    assert "dense.lr = -1" in str(caught.value) and "model.layers = 0" in str(caught.value)


@pytest.mark.parametrize("bad", ["dense", "dense_finetuned"])
def test_a_variant_cannot_take_the_name_of_a_dense_reference(raw, root, bad):
    """Tables tell the rows apart by these names."""
    with pytest.raises(ConfigError, match=bad):
        load_config(
            put(raw, f"tasks.tiny.variants.{bad}", {"method": "d2dmoe", "label": "x"}), root
        )


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("path:nowhere", ["path:", "nowhere", "no such folder"]),
        ("vendored:nothing", ["vendored:nothing", "Vendored sets: known"]),
        ("path:images/train", ["needs train/ and test/", "folders found: cat, dog"]),
    ],
)
def test_a_missing_dataset_is_a_data_error_before_anything_runs(raw, root, source, parts):
    (root / "resources" / "known").mkdir(parents=True)
    (root / "resources" / "known" / "SHA256SUMS").touch()
    with pytest.raises(DataError) as caught:
        load_config(put(raw, "tasks.tiny.data.source", source), root)
    for part in parts:
        assert part in str(caught.value)


def test_a_checked_configuration_cannot_be_changed(raw):
    config = Config.model_validate(raw)
    with pytest.raises(ValidationError, match="frozen"):
        config.tasks["tiny"].sparsify.alpha = 0.5


def test_stages_take_the_variants_changes_over_the_methods_over_the_tasks(raw):
    task = Config.model_validate(raw).tasks["tiny"]
    own, sparser, moefied = (task.stages(v) for v in ("sparse", "sparser", "moefication"))
    assert own.sparsify == task.sparsify and own.split == task.split and own.router == task.router
    assert sparser.sparsify == task.sparsify.model_copy(update={"alpha": 0.2})
    assert moefied.sparsify.alpha == 0 and moefied.router.kind == "classification"
    rules = [task.stages(v).rule for v in ("sparse", "moefication", "static")]
    assert rules == ["dynamic_k", "top_k", "top_k"]
