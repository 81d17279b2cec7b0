"""Laws of the configuration: what cannot run is refused at once, in one message that says why."""

import copy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small_config import with_everything, with_language

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.config.experiment import Config, parse_config
from d2dmoe.config.task import TaskConfig
from d2dmoe.errors import ConfigError, DataError
from d2dmoe.extensions import import_extensions
from d2dmoe.figures import by_key
from d2dmoe.methods import CONVERSION_KNOBS, METHODS
from d2dmoe.methods.conversion.plan import Conversion, conversion
from d2dmoe.models import ARCHITECTURES
from d2dmoe.plan.checks import check, rule_names
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.variants import bases_of, knob_of
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection_rules import RULES

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


LANGUAGES = ["bert", "gpt2", "gemma"]


@pytest.fixture(params=["vit", *LANGUAGES])
def architecture(request) -> str:
    return request.param


@pytest.fixture
def of_any(raw, architecture) -> dict:
    """A valid configuration of each architecture."""
    return raw if architecture == "vit" else with_language(raw, architecture)


def load(raw: dict, root) -> Config:
    """A configuration that passes all checks."""
    return load_plan(raw, root).config


def stages(task: TaskConfig, variant: str) -> Conversion:
    """A conversion's stages."""
    return conversion(task, task.all_variants[variant])


def fault(raw: dict, root) -> str:
    """The one fault of a configuration."""
    with pytest.raises(ConfigError) as caught:
        load(raw, root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2  # a heading, and one line for the one fault
    return lines[1].strip()


def test_the_minimal_configuration_is_valid(raw, root):
    config = load(raw, root)
    assert config.seeds == [0, 1] and list(config.tasks) == ["tiny"]
    assert config.tasks["tiny"].clustering.method == "kmeans"  # a default


def test_seeds_may_be_text_as_the_command_line_gives_them(raw, root):
    raw["seeds"] = ["0", "2"]
    assert load(raw, root).seeds == [0, 2]


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
        [
            "tasks.tiny.variants.sparse.router.depth = 3",
            "allowed keys: epochs, kind, lr, projection_width, width",
        ],
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
        "tasks.tiny.clustering.expert_size",
        5,
        [
            "tasks.tiny",
            "clustering.expert_size = 5",
            "model.d_ff = 32",
            f"allowed: {DIVISORS_OF_32}",
        ],
        id="expert size does not divide d_ff",
    ),
    pytest.param(
        "tasks.tiny.variants.random.clustering.expert_size",
        3,
        ["variant 'random'", "clustering.expert_size = 3", f"allowed: {DIVISORS_OF_32}"],
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
        ["variant 'sparse'", "sparsify + router + tune epochs = 9", "router.epochs is 5"],
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
    pytest.param("seeds", [0, 1, 0], ["seeds = [0, 1, 0]", "repeat a seed"], id="repeated seeds"),
    pytest.param("seeds", [], ["seeds = []", "at least 1"], id="no seeds"),
    pytest.param(
        "tasks.tiny.dense.lr",
        "1_000",
        ["tasks.tiny.dense.lr = '1_000'", "valid number"],
        id="a text that is no exact numeral",
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


LAYER = {"tokens": 9, "d_model": 16, "num_experts": 8, "expert_size": 2}


@pytest.fixture
def with_benchmarks(raw) -> dict:
    """With a model that follows the selections of a conversion, and a decoding step."""
    vit, gpt2 = copy.deepcopy(raw["tasks"]["tiny"]["model"]), {"architecture": "gpt2"}
    gpt2 |= {"positions": 16, "layers": 1, "d_model": 16, "heads": 2, "d_ff": 32}
    timed = {"num_experts": 8, "batches": [1]}
    masks = {"task": "tiny", "variant": "sparse", "values": [0.5], "samples": 2}
    models = {"vit": timed | {"model": vit, "size": 8, "mask": "converted"}}
    decode = {"gpt2": timed | {"kind": "step", "model": gpt2, "context": 8}}
    layers = {"cpu": {"small": LAYER | {"masks": ["converted"]}}, "gpu": {"large": LAYER}}
    return raw | {"benchmarks": layers | {"models": models, "decode": decode, "masks": masks}}


B = "benchmarks."
WRONG_BENCHMARKS = [  # key, value, what the message must hold
    ("masks", None, ["cpu.small has the mask converted", "give benchmarks.masks"]),
    ("cpu.small.num_experts", 4, ["cpu.small.num_experts = 4 must be 8"]),
    ("gpu.large.router_width", 7, ["router_width = 7 must be at least num_experts = 8"]),
    ("gpu.large.d_model", 6, ["d_model = 6 must be at least num_experts = 8"]),
    ("gpu.large", LAYER | {"gated": True, "projection": True}, ["gated and projection are both"]),
    ("gpu.large.masks", ["other"], ["benchmarks.gpu.large.masks", "converted"]),
    ("masks.task", "other", ["benchmarks.masks.task = other", "['tiny']"]),
    ("masks.variant", "other", ["benchmarks.masks.variant = other", "'sparse'"]),
    ("masks.variant", "static", ["masks.values: 0.5 is no operating point", "top_k: [1, 8]"]),
    ("masks.values", [0.4], ["benchmarks.masks.values: 0.4", "[0.0, 0.5]"]),
    ("models.vit.num_experts", 16, ["models.vit.num_experts = 16 must be 8"]),
    ("models.vit.num_experts", 5, ["num_experts = 5 must divide model.d_ff = 32"]),
    ("decode.gpt2.kind", "stack", ["benchmarks.decode.gpt2.kind", "ffn, step"]),
    ("decode.gpt2.context", 0, ["benchmarks.decode.gpt2.context = 0", "greater than 0"]),
]


@pytest.mark.parametrize(("key", "value", "parts"), WRONG_BENCHMARKS)
def test_benchmarks_that_cannot_run_are_refused(with_benchmarks, root, key, value, parts):
    assert load(with_benchmarks, root).benchmarks.masks.values == [0.5]
    line = fault(put(with_benchmarks, B + key, value), root)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(("variant", "value"), [("sparse", 0.5), ("static", 8)])
def test_masks_are_recorded_of_any_selection_rule(with_benchmarks, root, variant, value):
    raw = put(put(with_benchmarks, B + "masks.variant", variant), B + "masks.values", [value])
    assert load(raw, root).benchmarks.masks.values == [value]


def test_every_architecture_has_a_valid_minimal_configuration(of_any, architecture, root):
    task = load(of_any, root).tasks["tiny"]
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
    (T + "model.activation", "tanh", T + "model.activation = 'tanh': unknown activation 'tanh'; "),
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
    (["gemma"], "model.head_dim", 5, [T + "model: head_dim = 5 must be even"]),
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
        assert parse_config(changed).tasks["tiny"].model.weights == weights
    else:
        other = "'torchvision:MODEL:WEIGHTS'" if architecture == "vit" else "'hub:NAME@REVISION'"
        line = fault(changed, root)
        assert line.startswith(f"{T}model.weights = {weights!r}: must be 'scratch', ")
        assert other in line


def test_every_figure_but_the_tradeoff_may_be_left_out(of_any, root):
    of_any["tasks"]["tiny"]["figures"] = {"tradeoff": ["sparse"]}
    figures = load(of_any, root).tasks["tiny"].figures
    assert figures.variants() == figures.of_figures() == {"tradeoff": ["sparse"]}
    assert not any(getattr(figures, key) for key in by_key() if key != "tradeoff")
    of_any["tasks"]["tiny"]["figures"] = {}
    message = "tasks.tiny: figures.tradeoff is missing: name the variants of figure 4"
    assert fault(of_any, root) == message


@pytest.mark.parametrize("key", ["layers", "layer_thresholds"])
def test_panels_of_layers_are_of_measured_points_and_defined_variants(raw, root, key):
    good = {"variants": ["sparse", "sparser"], "values": [0.5]}
    figures = load(put(raw, f"{T}figures.{key}", good), root).tasks["tiny"].figures
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
    line = fault(put(raw, T + "figures.labels.trade", {}), root)
    assert line.startswith(T + "figures.labels.trade: unknown figure 'trade'; allowed: tradeoff, ")
    line = fault(put(raw, T + "figures.labels.load_maps", {}), root)  # compares no variants
    assert "unknown figure 'load_maps'; allowed: " in line and "layers" in line


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
        own = stages(load(raw, root).tasks["tiny"], "sparse")
        assert (own.sparsify.epochs, own.router.epochs) == (sparsify, router)
    else:
        line = fault(raw, root)
        assert "variant 'sparse': projections + sparsify + router + tune epochs = 0.4, but" in line
        assert "sparsify.epochs + router.epochs is 0.3; every variant must get the same" in line


@pytest.mark.parametrize(
    ("rule", "variant"), [("dynamic_k", "sparse"), ("top_k", "static"), ("coverage", "shares")]
)
def test_a_rule_that_a_variant_selects_by_needs_operating_points(raw, root, rule, variant):
    shares = {"method": "d2dmoe", "label": "shares", "select": "coverage"}
    raw = put(raw, T + "variants.shares", shares)
    for changed in (put(raw, f"{T}select.{rule}", []), copy.deepcopy(raw)):
        changed["tasks"]["tiny"]["select"].pop(rule, None)
        line = fault(changed, root)
        assert line == f"tasks.tiny: variant '{variant}': select.{rule} is missing"


def test_points_of_rules_that_no_variant_selects_by_may_be_left_out(raw, root):
    del raw["tasks"]["tiny"]["select"]["coverage"]
    assert load(raw, root).tasks["tiny"].select.coverage == []


UNKNOWN = [  # key, and the table that holds what is allowed
    (T + "model.activation", "activation", ACTIVATIONS),
    (B + "cpu.small.activation", "activation", ACTIVATIONS),
    (T + "router.kind", "kind of router", ROUTER_KINDS),
    (T + "variants.sparse.router.kind", "kind of router", ROUTER_KINDS),
    (T + "variants.sparse.select", "selection rule", RULES | CONVERSION_KNOBS),
]


@pytest.mark.parametrize(("key", "kind", "table"), UNKNOWN)
def test_a_name_that_a_table_does_not_hold_is_refused_with_those_that_it_holds(
    with_benchmarks, root, key, kind, table
):
    line = fault(put(with_benchmarks, key, "nothing"), root)
    allowed = ", ".join(table)
    assert line == f"{key} = 'nothing': unknown {kind} 'nothing'; allowed: {allowed}"
    parse_config(put(with_benchmarks, key, list(table)[0]))  # those of the table are taken


@pytest.mark.parametrize(
    ("key", "table"),
    [
        (T + "model.architecture", ARCHITECTURES),
        (T + "variants.sparse.method", METHODS),
        (T + "ablations.variants.wide.method", METHODS),
        (T + "bases.student.model.architecture", ARCHITECTURES),
    ],
)
def test_a_record_without_options_of_its_own_is_no_choice(raw, root, key, table):
    allowed = ", ".join(name for name, record in table.items() if record.options)
    for name in ("nothing", *(name for name, record in table.items() if not record.options)):
        line = fault(put(with_everything(raw), key, name), root)
        assert line == f"{key} = {name!r}: allowed are {allowed}"


@pytest.mark.parametrize(
    "key", ["router.label_smoothing", "projections.label_smoothing", "finetune.label_smoothing"]
)
def test_options_that_nothing_reads_are_refused(raw, root, key):
    """Routers and imitating MLPs are not trained on the task's loss; the reference's options are
    the sparsification's."""
    raw = with_everything(raw)
    raw["tasks"]["tiny"]["finetune"] = {}
    line = fault(put(raw, T + key, 0.1), root)
    assert line.startswith(f"{T}{key} = 0.1: unknown key (allowed keys: ")
    for stage in ("dense", "sparsify", "ztw", "avit", "bases.pruned", "bases.student"):
        assert load(put(raw, f"{T}{stage}.label_smoothing", 0.1), root)


def test_the_faults_of_single_values_are_found_without_any_file(raw):
    with pytest.raises(ConfigError, match="layers = 0"):
        parse_config(put(raw, T + "model.layers", 0))
    broken = put(raw, T + "clustering.expert_size", 5)  # against model.d_ff
    config = parse_config(broken)
    with pytest.raises(ConfigError, match=r"tasks\.tiny: variant .* must divide"):
        check(config, Path("nowhere"))


def test_the_first_fault_of_every_task_is_told_at_once(raw, root):
    raw["tasks"]["other"] = copy.deepcopy(raw["tasks"]["tiny"])
    raw["tasks"]["third"] = copy.deepcopy(raw["tasks"]["tiny"])
    raw = put(put(raw, T + "clustering.expert_size", 5), T + "figures.tradeoff", ["nobody"])
    raw = put(raw, "tasks.other.figures.tradeoff", [])
    with pytest.raises(ConfigError) as caught:
        load(raw, root)
    heading, *lines = str(caught.value).splitlines()
    assert heading == "the configuration is wrong:"
    assert [line.split(":")[0] for line in lines] == ["  tasks.tiny", "  tasks.other"]


@pytest.mark.parametrize("raw", [None, [], "seeds"])
def test_a_configuration_that_is_no_mapping_is_refused(raw, root):
    with pytest.raises(ConfigError, match="needs the keys seeds and tasks"):
        load(raw, root)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["no_such_module"], ["'no_such_module'", "cannot be imported", "PYTHONPATH"]),
        ("json", ["extensions = 'json'", "must be a list"]),
        ([3], ["extensions = [3]", "must be a list"]),
        ([""], ["extensions = ['']", "must be a list"]),
        ([".mine"], ["extensions = ['.mine']", "must be a list"]),
    ],
)
def test_extensions_are_modules_that_can_be_imported(names, parts):
    with pytest.raises(ConfigError) as caught:
        import_extensions({"extensions": names})
    for part in parts:
        assert part in str(caught.value)


def test_extensions_may_be_left_out(raw, root):
    import_extensions({})
    import_extensions({"extensions": ["json"]})
    assert load(raw | {"extensions": ["json"]}, root).extensions == ["json"]


def test_a_missing_key_is_named(raw, root):
    del raw["tasks"]["tiny"]["model"]["d_ff"]
    with pytest.raises(ConfigError, match=r"tasks\.tiny\.model\.d_ff: missing"):
        load(raw, root)


def test_all_faults_come_in_one_message(raw, root):
    raw = put(put(raw, "tasks.tiny.dense.lr", -1), "tasks.tiny.model.layers", 0)
    with pytest.raises(ConfigError) as caught:
        load(raw, root)
    assert "dense.lr = -1" in str(caught.value) and "model.layers = 0" in str(caught.value)


@pytest.mark.parametrize("bad", ["dense", "dense_finetuned"])
def test_a_variant_cannot_take_the_name_of_a_dense_reference(raw, root, bad):
    """Tables tell the rows apart by these names."""
    with pytest.raises(ConfigError, match=bad):
        load(put(raw, f"tasks.tiny.variants.{bad}", {"method": "d2dmoe", "label": "x"}), root)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("path:nowhere", ["path:", "nowhere", "no such folder"]),
        ("vendored:nothing", ["vendored:nothing", "Vendored sets: ", "known"]),
        ("path:images/train", ["needs train/ and test/", "folders found: cat, dog"]),
    ],
)
def test_a_missing_dataset_is_a_data_error_before_anything_runs(raw, root, source, parts):
    (root / "resources" / "known").mkdir(parents=True)
    (root / "resources" / "known" / "SHA256SUMS").touch()
    with pytest.raises(DataError) as caught:
        load(put(raw, "tasks.tiny.data.source", source), root)
    for part in parts:
        assert part in str(caught.value)


def test_a_checked_configuration_cannot_be_changed(raw):
    config = Config.model_validate(raw)
    with pytest.raises(ValidationError, match="frozen"):
        config.tasks["tiny"].sparsify.alpha = 0.5


def test_stages_take_the_variants_changes_over_the_methods_over_the_tasks(raw):
    task = Config.model_validate(raw).tasks["tiny"]
    own, sparser, moefied = (stages(task, v) for v in ("sparse", "sparser", "moefication"))
    for stage in ("sparsify", "clustering", "router"):
        assert getattr(own, stage) == getattr(task, stage)
    assert sparser.sparsify == task.sparsify.model_copy(update={"alpha": 0.2})
    assert moefied.sparsify.alpha == 0 and moefied.router.kind == "classification"
    rules = [knob_of(task, v) for v in ("sparse", "moefication", "static")]
    assert rules == ["dynamic_k", "top_k", "top_k"]


# Suites, compressed models, attention projections, baselines and trials.


@pytest.fixture
def everything(raw) -> dict:
    """A valid configuration of images with all that a task can have."""
    return with_everything(raw)


def test_a_configuration_of_everything_is_valid(everything, root):
    task = load(everything, root).tasks["tiny"]
    assert list(task.suites) == ["ablations", "compatibility", "neighbours"]
    counts = [len(own.variants) for own in task.suites.values()]
    assert len(task.all_variants) == len(task.variants) + sum(counts) and min(counts) > 0
    attention = stages(task, "attention")
    assert (attention.projections.epochs, attention.sparsify.epochs) == (1, 2)
    assert attention.clustering.projection_expert_size == 2
    assert attention.router.projection_width == 4
    plain = stages(task, "sparse")
    assert plain.projections is plain.clustering.projection_expert_size is None
    assert plain.router.projection_width is None
    names = ("ztw", "avit", "int8", "attention", "moefication")
    knobs = ["confidence", "depth", "dense", "dynamic_k", "top_k"]
    assert [knob_of(task, name) for name in names] == knobs


NEW = {"method": "d2dmoe", "label": "new"}
QUANTIZED = {"method": "quantized", "label": "int8", "quantize": "int8"}
V = "variants."
COMBINED = [  # key, value, what the message must hold
    # Names
    (V + "dense", NEW, ["variants.dense: the name is taken by the dense reference"]),
    (V + "dense_finetuned", NEW, ["variants.dense_finetuned: the name is taken by"]),
    ("ablations.variants.dense", NEW, ["ablations.variants.dense: the name is taken by"]),
    (V + "pruned", NEW, ["variants.pruned: the name is taken by bases"]),
    (V + "pruned_finetuned", NEW, ["variants.pruned_finetuned", "bases.pruned, trained on"]),
    ("ablations.variants.sparse", NEW, ["ablations.variants.sparse: ", "taken by variants"]),
    ("compatibility.variants.wide", NEW, ["compatibility.variants.wide", "by ablations.variants"]),
    ("compatibility.variants.student", NEW, ["compatibility.variants.student", "by bases"]),
    (V + "Upper", NEW, [T + "variants.Upper", "pattern"]),
    # Compressed models
    (V + "sparse.base", "small", ["variant 'sparse': base = 'small'", "['pruned', 'student']"]),
    ("bases.pruned.kind", "shrink", [T + "bases.pruned.kind = 'shrink'", "prune, distill"]),
    ("bases.pruned.neurons", 1.0, [T + "bases.pruned.neurons = 1.0", "less than 1"]),
    ("bases.pruned.heads", -0.5, [T + "bases.pruned.heads = -0.5", "greater than or equal to 0"]),
    ("bases.pruned.nuerons", 0.5, [T + "bases.pruned.nuerons = 0.5", "did you mean 'neurons'?"]),
    ("bases.student.imitation", 1.5, [T + "bases.student.imitation = 1.5", "less than or equal"]),
    (
        "bases.student.model.d_ff",
        6,
        [
            "variant 'student_sparse': clustering.expert_size = 4",
            "d_ff = 6",
            "allowed: [1, 2, 3, 6]",
        ],
    ),
    (
        "bases.pruned.neurons",
        0.9,
        ["variant 'pruned_sparse': clustering.expert_size = 4", "d_ff = 3", "allowed: [1, 3]"],
    ),
    (
        "compatibility.variants.student_sparse.select",
        "top_k",
        ["variant 'student_sparse': select.top_k = 8 exceeds its 4 experts; allowed: 1 to 4"],
    ),
    (
        "bases.student.model",
        {"architecture": "gpt2", "layers": 1, "d_model": 8, "heads": 2, "d_ff": 16}
        | {"positions": 12},
        ["bases.student.model.architecture gpt2 takes data of the kind corpus", "kind is images"],
    ),
    (
        "bases.student.model.patch_size",
        3,
        ["bases.student.model.patch_size = 3 must divide data.image_size = 8", "[1, 2, 4, 8]"],
    ),
    ("bases.student.model.stem", [8], ["bases.student.model.stem has 1", "needs a grid of 2"]),
    ("bases.student.model.heads", 3, [T + "bases.student.model", "heads = 3", "d_model = 8"]),
    # Attention projections
    ("projections", None, ["variant 'attention': the task has no section projections"]),
    (
        "clustering.projection_expert_size",
        None,
        ["variant 'attention' converts attention projections: give clustering.projection_exp"],
    ),
    ("router.projection_width", None, ["'attention'", "and router.projection_width"]),
    (
        "clustering.projection_expert_size",
        3,
        ["variant 'attention': clustering.projection_expert_size = 3", "projections.multiple = 4"],
    ),
    (
        V + "attention.clustering",
        {"projection_expert_size": 8},
        ["projection_expert_size = 8 must"],
    ),
    (
        V + "attention.select",
        "top_k",
        ["variant 'attention': top_k selects as many experts", "use dynamic_k or coverage"],
    ),
    (
        "projections.epochs",
        4,
        ["variant 'attention': projections + sparsify + router + tune epochs = 6", "epochs is 5"],
    ),
    ("projections.maps", ["q", "q"], [T + "projections.maps", "must not repeat a projection"]),
    ("projections.maps", [], [T + "projections.maps = []", "at least 1"]),
    ("projections.maps", ["q", "z"], [T + "projections.maps.1 = 'z'", "'q', 'k', 'v' or 'o'"]),
    ("projections.dropout", 1.0, [T + "projections.dropout = 1.0", "less than 1"]),
    (
        V + "attention.projections",
        {"multiple": 8},
        [T + "variants.attention.projections.multiple = 8: unknown key", "alpha, epochs, factor"],
    ),
    # Baselines
    ("ztw", None, ["variant 'ztw': the task has no section ztw"]),
    ("avit", None, ["variant 'avit': the task has no section avit"]),
    ("ztw.epochs", 4, ["variant 'ztw': ztw.epochs = 4", "router.epochs is 5", "same number"]),
    ("avit.epochs", 6, ["variant 'avit': avit.epochs = 6", "router.epochs is 5", "same number"]),
    ("select.confidence", [], ["variant 'ztw': select.confidence is missing"]),
    ("select.confidence", [0.5, 0.5], [T + "select.confidence", "repeat an operating point"]),
    (V + "avit.depths", [1.0, 1.0], [T + "variants.avit.depths", "must not repeat a depth"]),
    (V + "avit.depths", [], [T + "variants.avit.depths = []", "at least 1"]),
    (V + "ztw.sparsify", {}, [T + "variants.ztw.sparsify = {}: unknown key", "label, method"]),
    (
        V + "sparse.method",
        "magic",
        [
            T + "variants.sparse.method = 'magic'",
            "quantized, d2dmoe, extended, moefication, ztw, narrow, avit",
        ],
    ),
    # What is ours and not the paper's, and controls
    ("tune", None, ["variant 'tuned': the task has no section tune"]),
    ("tune.tau", [0.5, 0.1], [T + "tune.tau", "must name the smaller τ first"]),
    ("tune.tau", [0.5, 1.5], [T + "tune.tau.1 = 1.5", "less than or equal to 1"]),
    ("tune.epochs", 4, ["variant 'tuned': projections + sparsify + router + tune epochs = 6"]),
    (V + "sparse.tune", {}, [T + "variants.sparse", "tune is none of the paper's", "extended"]),
    (V + "sparse.select", "true_norms", [T + "variants.sparse", "select is none of the paper's"]),
    (
        V + "sparse.router",
        {"kind": "root_regression"},
        [T + "variants.sparse", "router.kind is none of the paper's", "extended"],
    ),
    (
        "ablations.variants.narrow.widths",
        [16, 32],
        ["variant 'narrow': widths = [16, 32] must be below model.d_ff = 32"],
    ),
    ("ablations.variants.narrow.widths", [8, 8], ["narrow.widths", "must not repeat a width"]),
    ("select.true_norms", [], ["variant 'bound': select.true_norms is missing"]),
    # Quantised weights
    ("compatibility.variants.int8.quantize", "int4", ["variants.int8.quantize = 'int4'", "'int8'"]),
    ("compatibility.variants.int8", {k: QUANTIZED[k] for k in ("method", "label")}, ["missing"]),
    ("compatibility.variants.int8.base", "pruned", ["int8.base = 'pruned': unknown key"]),
    # Thresholds
    (
        "neighbours.variants.cats.expert_size",
        5,
        ["variant 'cats': expert_size = 5 must divide model.d_ff = 32; allowed: [1, 2, 4, 8,"],
    ),
    ("neighbours.variants.cats.attention", True, ["cats.attention = True: unknown key"]),
    ("neighbours.variants.chess.start", "dense", ["chess.start = 'dense'", "'sparsified'"]),
    ("neighbours.variants.teal.step", 0.0, ["teal.step = 0.0", "greater than 0"]),
    ("neighbours.variants.teal.samples", 0, ["teal.samples = 0", "greater than 0"]),
    ("select.density", [], ["variant 'cats': select.density is missing"]),
    ("select.density", [0.5, 1.5], ["select.density", "1.5"]),
    ("select.density", [0.5, 0.5], ["select.density", "must not repeat an operating point"]),
    ("neighbours.figures.layers", {"variants": ["cats"], "values": [0.5]}, ["has no experts"]),
    # Figures of suites
    (
        "compatibility.figures.pruned",
        ["binary"],
        ["compatibility.figures.pruned names the variant 'binary'; defined: ", "'student'"],
    ),
    (
        "ablations.figures.clusterings",
        ["nobody"],
        ["ablations.figures.clusterings names", "'nobody'"],
    ),
    ("figures.pruned", ["pruned"], ["figures.pruned names the variant 'pruned'; defined: "]),
    ("figures.routers", ["binary"], ["figures.routers names the variant 'binary'; defined: "]),
    (
        "ablations.figures.load_maps",
        {"variant": "sparse", "value": 0.5},
        ["ablations.figures.load_maps: it belongs into figures"],
    ),
    ("ablations.figures", {"routres": []}, ["did you mean 'routers'?", T + "ablations.figures"]),
    ("ablations.variants", {}, [T + "ablations", "at least 1"]),
    ("ablations.figures.labels", {"routers": {"nobody": "x"}}, ["figures.labels.routers names"]),
    (
        "ablations.figures.routers",
        ["binary", "sparse"],
        ["ablations.figures.routers", "a regression router, the first", "['classification', 'reg"],
    ),
    (
        "ablations.figures.routers",
        ["sparse", "wide"],
        ["kind (root_regression, classification); it names ['regression', 'regression']"],
    ),
    (
        "ablations.figures.routers",
        ["sparse", "ztw"],
        ["ablations.figures.routers: the variant 'ztw' has no experts; leave it out"],
    ),
    (
        "compatibility.figures.active_neurons",
        ["sparse", "pruned"],
        ["compatibility.figures.active_neurons: the variant 'pruned' has no experts"],
    ),
    (
        "compatibility.figures.active_neurons",
        ["int8"],
        ["compatibility.figures.active_neurons: the variant 'int8' has no experts"],
    ),
    (
        "figures.layers.variants",
        ["sparse", "avit"],
        ["figures.layers.values: the variant 'avit' has no experts"],
    ),
    ("figures.load_maps.variant", "ztw", ["figures.load_maps.value: the variant 'ztw' has no"]),
    (
        "ablations.figures.layers",
        {"variants": ["wide"], "values": [0.3]},
        ["ablations.figures.layers.values: 0.3 is no operating point of the variant 'wide'"],
    ),
    # Learning rates
    ("tuning.nobody", [0.001, 0.002], ["tuning names the variant 'nobody'; allowed: ", "'ztw'"]),
    ("tuning.dense", [0.001, 0.002], ["tuning names the variant 'dense'", "'dense_finetuned'"]),
    ("tuning.wide", [0.001, 0.002], ["tuning names the variant 'wide'", "allowed: ['sparse', "]),
    (
        "tuning.sparse",
        [0.002, 0.004],
        ["tuning.sparse = [0.002, 0.004]", "the one that the variant has: 0.001"],
    ),
    ("tuning.ztw", [0.002, 0.004], ["tuning.ztw = [0.002, 0.004]", "the variant has: 0.001"]),
    ("tuning.sparse", [0.001, 0.001], ["tuning.sparse = [0.001, 0.001]", "different rates"]),
    (
        "tuning.sparse",
        [0.001],
        ["tuning must give every variant as many rates", "'sparse': 1", "'ztw': 2"],
    ),
    ("tuning.static", [0.001], ["tuning must give every variant as many rates", "'static': 1"]),
    ("tuning.sparse", [0.001, -1.0], [T + "tuning.sparse.1 = -1.0", "greater than 0"]),
    ("finetune.lr", 0.003, ["tuning.dense_finetuned = [0.0005, 0.001]", "has: 0.003"]),
    ("finetune.lr", 0, [T + "finetune.lr = 0", "greater than 0"]),
    ("finetune.epochs", 3, [T + "finetune.epochs = 3: unknown key", "allowed keys: lr"]),
    (
        "sparsify.min_lr",
        0.0007,
        ["tuning.dense_finetuned = 0.0005 must not be below min_lr = 0.0007 of its stage"],
    ),
    ("ztw.min_lr", 0.0007, ["tuning.ztw = 0.0005 must not be below min_lr = 0.0007"]),
    ("avit.min_lr", 0.0007, ["tuning.avit = 0.0005 must not be below min_lr = 0.0007"]),
]


@pytest.mark.parametrize(
    ("key", "value", "parts"), COMBINED, ids=[f"{i} {key}" for i, (key, *_) in enumerate(COMBINED)]
)
def test_options_that_do_not_go_together_are_one_error_that_names_them(
    everything, root, key, value, parts
):
    line = fault(put(everything, T + key, value), root)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("missing", ["ztw", "sparse", "dense_finetuned"])
def test_every_method_of_figure_4_must_have_been_tuned_if_any_was(everything, root, missing):
    del everything["tasks"]["tiny"]["tuning"][missing]
    line = fault(everything, root)
    assert line == f"tasks.tiny: tuning lacks variants that figure 4 compares: ['{missing}']"
    everything["tasks"]["tiny"]["tuning"] = {}
    assert load(everything, root).tasks["tiny"].tuning == {}


def test_quantised_weights_have_no_rate_and_so_are_not_tuned(everything, root):
    changed = put(everything, T + "variants.bits", QUANTIZED)
    line = fault(put(changed, T + "tuning.bits", [0.0005, 0.001]), root)
    assert "tuning names the variant 'bits'; allowed: ['sparse'" in line
    task = load(put(changed, T + "figures.tradeoff.0", "bits"), root).tasks["tiny"]
    assert task.figures.tradeoff[0] == "bits" and "bits" not in task.tuning


@pytest.mark.parametrize("stage", ["sparsify", "router", "projections"])
def test_no_variants_peak_is_below_the_end_of_its_cosine(everything, root, stage):
    raw = put(everything, f"{T}{stage}.min_lr", 0.0004)
    change = {"lr": 0.0003}
    line = fault(put(raw, f"{T}variants.attention.{stage}", change), root)
    message = f"variant 'attention': {stage}.lr = 0.0003 must not be below min_lr = 0.0004"
    assert message in line
    at_the_end = put(raw, f"{T}variants.attention.{stage}", {"lr": 0.0004})
    at_the_end["tasks"]["tiny"]["tuning"] = {}
    assert getattr(stages(load(at_the_end, root).tasks["tiny"], "attention"), stage).lr == 0.0004


def test_the_peak_of_the_dense_reference_is_not_below_the_end_of_its_cosine(raw, root):
    raw = put(put(raw, T + "sparsify.min_lr", 0.0004), T + "finetune.lr", 0.0003)
    message = "tasks.tiny: finetune.lr = 0.0003 must not be below min_lr = 0.0004 of its stage"
    assert fault(raw, root) == message


def test_a_base_needs_no_options_of_its_own_where_there_are_none(raw, root):
    line = fault(put(raw, T + "variants.sparse.base", "pruned"), root)
    assert "variant 'sparse': base = 'pruned' is not defined; defined in bases: none" in line


def test_moefication_leaves_its_penalty_and_router_alone_in_every_suite(everything, root):
    own = {"method": "moefication", "label": "x", "router": {"kind": "regression"}}
    line = fault(put(everything, T + "ablations.variants.own", own), root)
    assert T + "ablations.variants.own" in line and "routes by classification" in line


PRUNED = {"kind": "prune", "label": "pruned", "heads": 0.5, "neurons": 0.5}
PRUNED |= {"epochs": 1, "lr": 0.001}


@pytest.mark.parametrize("name", LANGUAGES)
def test_heads_leave_where_the_architecture_lets_them(raw, root, name):
    raw = put(with_language(raw, name), T + "bases.pruned", PRUNED)
    raw["tasks"]["tiny"]["variants"]["sparse"]["base"] = "pruned"
    if name == "bert":
        assert load(raw, root).tasks["tiny"].bases["pruned"].heads == 0.5
    else:
        message = f"bases.pruned.heads = 0.5: heads of {name} cannot be removed; give 0 to prune"
        assert message in fault(raw, root)
    neurons_alone = load(put(raw, T + "bases.pruned.heads", 0.0), root).tasks["tiny"]
    assert bases_of(neurons_alone, "main") == ["pruned"]


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_student_reads_as_long_sequences_as_the_data_has(raw, root, name):
    raw = with_language(raw, name)
    student = {"kind": "distill", "label": "x", "epochs": 1, "lr": 0.001}
    student["model"] = raw["tasks"]["tiny"]["model"] | {"positions": 11}
    line = fault(put(raw, T + "bases.student", student), root)
    assert "data.length = 12 tokens exceeds bases.student.model.positions = 11" in line


@pytest.mark.parametrize("stage", ["projections", "ztw", "bases.pruned"])
@pytest.mark.parametrize(("key", "value"), [("augment", {"flip": True}), ("mixup", 1.0)])
def test_changes_of_images_are_refused_for_texts_in_optional_stages(raw, root, stage, key, value):
    section = PRUNED if stage == "bases.pruned" else {"epochs": 1, "lr": 0.001}
    raw = put(with_language(raw, "bert"), T + stage, section)
    assert load(raw, root)
    line = fault(put(raw, f"{T}{stage}.{key}", value), root)
    assert line == f"tasks.tiny: {stage}.{key} changes images; data.kind is texts"


@pytest.mark.parametrize("name", LANGUAGES)
def test_baselines_are_of_the_models_that_they_work_on(raw, root, name):
    raw = with_language(raw, name)
    task = raw["tasks"]["tiny"]
    task["ztw"] = task["avit"] = {"epochs": 5, "lr": 0.001}
    task["select"]["confidence"] = [0.5]
    halting = {"method": "avit", "label": "A-ViT", "depths": [1.0]}
    line = fault(put(raw, T + "variants.avit", halting), root)
    assert "variant 'avit': avit halts the tokens of images; leave it out" in line
    exits = put(raw, T + "variants.ztw", {"method": "ztw", "label": "ZTW"})
    if name == "bert":
        assert knob_of(load(exits, root).tasks["tiny"], "ztw") == "confidence"
    else:
        assert "variant 'ztw': ztw needs a classifier; leave it out" in fault(exits, root)


@pytest.mark.parametrize("variant", ["exits", "bits", "nobody"])
def test_boolq_asks_conversions_of_the_main_suite_only(raw, root, variant):
    raw = with_language(raw, "gpt2")
    raw["tasks"]["tiny"]["variants"]["bits"] = QUANTIZED
    raw["tasks"]["tiny"]["boolq"] = {"variants": ["sparse"]}
    assert load(raw, root).tasks["tiny"].boolq.variants == ["sparse"]
    line = fault(put(raw, T + "boolq.variants", ["sparse", variant]), root)
    assert f"boolq.variants names the variant '{variant}'; defined: ['sparse'" in line


@pytest.mark.parametrize("name", sorted(rule_names()))
def test_a_task_cannot_take_the_name_of_a_rule_or_target(raw, root, name):
    raw["tasks"][name] = raw["tasks"].pop("tiny")
    assert fault(raw, root).endswith(
        f"tasks.{name}: the name is a rule's or target's; call the task otherwise"
    )
