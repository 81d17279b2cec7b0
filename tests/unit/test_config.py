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
    with pytest.raises(ConfigError) as caught:
        load_config(put(raw, key, value), root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2  # a heading, and one line for the one fault
    for part in parts:
        assert part in lines[1]


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
