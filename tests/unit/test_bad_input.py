"""Laws of bad input: it is taken as what it says, or refused in one message that names the cause
before the first job. `tests/fuzz` does the same at random."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file
from small_config import with_everything, with_language

from d2dmoe import errors
from d2dmoe.config.data import ImagesConfig, data_config
from d2dmoe.config.experiment import MOST_VALUES, parse_config
from d2dmoe.data.image_sources import load_images
from d2dmoe.data.images import prepare_images
from d2dmoe.data.text_splits import split_labelled
from d2dmoe.errors import DataError, UserError
from d2dmoe.figures import activity, load_maps, saved_share
from d2dmoe.figures.style import handle, legend, look, styled
from d2dmoe.io.csvfile import write_rows
from d2dmoe.io.read import read_table
from d2dmoe.methods.checks import divisors
from d2dmoe.plan.checks import rule_names
from d2dmoe.plan.claims import claim_tables
from d2dmoe.plan.plan import load_plan
from d2dmoe.plan.tables import task_tables
from d2dmoe.tables import COLUMNS, TRADEOFF_COLUMNS, gather, tradeoff

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results/reference"


def tiny(raw: dict) -> dict:
    return raw["tasks"]["tiny"]


def refusal(raw: dict, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_plan(raw, root)
    return str(caught.value)


# Messages.


@pytest.mark.parametrize("kind", [UserError, DataError, errors.UnknownName])
def test_a_message_of_any_length_is_shortened_in_its_middle(kind):
    assert str(kind("cause " * 200)) == "cause " * 200
    message = str(kind("cause" + "x" * 500_000 + "remedy"))
    assert len(message) < errors.LONGEST + 100
    assert message.startswith("causexx") and message.endswith("xxremedy")
    assert "… (498011 characters) …" in message


def test_values_that_aliases_repeat_are_not_spelt_out(raw, root):
    bomb: object = "boom"
    for _ in range(4):
        bomb = [bomb] * 9
    message = refusal(raw | {"seeds": bomb}, root)
    assert "seeds.0 = [[[" in message and len(message) < errors.LONGEST + 100


@pytest.mark.parametrize("wrap", [lambda x: [x] * 9, lambda x: dict.fromkeys("abcdefghi", x)])
def test_aliases_within_aliases_and_circles_are_refused_before_anything_walks_them(raw, root, wrap):
    bomb: object = "boom"
    for _ in range(60):
        bomb = wrap(bomb)
    assert f"more than {MOST_VALUES} values" in refusal(raw | {"seeds": bomb}, root)
    tiny(raw)["data"]["again"] = raw
    assert "Look for aliases (*name)" in refusal(raw, root)


def test_of_many_faults_the_first_are_told_and_the_rest_counted(raw, root):
    tiny(raw)["variants"] |= {f"v{i}": {"method": "d2dmoe"} for i in range(30)}
    lines = refusal(raw, root).splitlines()
    assert len(lines) == 22 and lines[-1].strip() == "and 10 more"


@pytest.mark.parametrize("value", [16**5000, -(10**13), 1e300], ids=["long", "low", "high"])
def test_numbers_beyond_all_options_are_refused(raw, root, value):
    tiny(raw)["model"]["layers"] = value
    assert "no option takes a number as large as" in refusal(raw, root)


# Numbers and names.


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("alpha", "0.02", 0.02),
        ("alpha", "1e-3", 0.001),
        ("alpha", "5.E+0", 5.0),
        ("alpha", ".5", 0.5),
        ("alpha", "3", 3.0),
        ("batch_size", "+16", 16),
        ("betas", ["0.8", "9e-1"], (0.8, 0.9)),
        ("clip", "null", None),
        ("clip", "2", 2.0),
        ("augment", {"flip": "true"}, None),
    ],
)
def test_exact_numerals_and_words_are_what_they_say_where_no_text_is_allowed(raw, key, text, value):
    """As `--config tasks={tiny: {sparsify: {alpha: 0.02}}}` gives them, or YAML 1.1 does."""
    tiny(raw)["sparsify"][key] = text
    found = getattr(parse_config(raw).tasks["tiny"].sparsify, key)
    assert found.flip is True if key == "augment" else found == value


@pytest.mark.parametrize("text", ["0x1", "1_0", " 1", "1 ", "١", "nan", "inf", "1e", "", "true"])
def test_other_texts_are_no_numbers(raw, root, text):
    tiny(raw)["sparsify"]["alpha"] = text
    assert f"tasks.tiny.sparsify.alpha = {text!r}: Input should be a valid number" in refusal(
        raw, root
    )


def as_texts(value: object) -> object:
    """A tree with texts alone."""
    if isinstance(value, dict):
        return {key: as_texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_texts(inner) for inner in value]
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("name", ["config.yaml", "configs/paper.yaml", "tests/workflow/tiny.yaml"])
def test_a_configuration_of_texts_alone_is_the_same(name):
    """As Snakemake reads what stands in braces after --config."""
    raw = yaml.safe_load((ROOT / name).read_text())
    assert parse_config(as_texts(raw)) == parse_config(raw)


def test_a_text_stays_a_text_where_one_is_allowed(raw):
    variant = tiny(raw)["variants"]["sparse"]
    for text in ("1e-3", "null", "true", "007"):
        variant["label"] = text
        assert parse_config(raw).tasks["tiny"].variants["sparse"].label == text


@pytest.mark.parametrize(
    "name", ["A", "é", "e\u0301", "a b", "a,b", 'a"', "=a", "-a", "../a", "", "a" * 65, "a\n", "ı"]
)
def test_names_that_files_and_tables_cannot_hold_are_refused(raw, root, name):
    """Names are lower case: file systems that know no capitals would lay two tasks into one."""
    for section in ("tasks", "variants"):
        changed = json.loads(json.dumps(raw))
        holder = changed["tasks"] if section == "tasks" else tiny(changed)["variants"]
        holder[name] = next(iter(holder.values()))
        assert f"{section}." in refusal(changed, root)


@pytest.mark.parametrize("name", [False, None, 1, 0.5])
def test_a_key_that_yaml_does_not_read_as_text_is_to_be_quoted(raw, root, name):
    tiny(raw)["variants"][name] = tiny(raw)["variants"]["sparse"]
    line = refusal(raw, root).splitlines()[1].strip()
    assert line == f"tasks.tiny.variants.{name}: a key must be text: quote it"


@pytest.mark.parametrize(
    ("architecture", "read", "other"),
    [("bert", "pad", "end_of_text"), ("gpt2", "end_of_text", "pad")],
)
def test_a_token_that_the_kind_of_data_does_not_read_is_refused(
    raw, root, architecture, read, other
):
    raw = with_language(raw, architecture)
    tokenizer = tiny(raw)["data"]["tokenizer"]
    tokenizer[read] = "<x>"
    assert load_plan(raw, root).task("tiny") == data_again(load_plan(raw, root).task("tiny"))
    tokenizer[other] = "<y>"
    assert f"tokenizer.{other} = '<y>' is not read: give tokenizer.{read}" in refusal(raw, root)


def data_again(task):
    """A task whose data are read from the plain values that a job gets."""
    return task.model_copy(update={"data": data_config(task.data.model_dump(mode="json"))})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"weights": "path:x.safetensors"}, "random ones are timed"),
        ({"activation": "relu"}, "model.activation = relu: give the entry's activation"),
        ({"patch_size": 3}, "model.patch_size = 3 must divide size = 8"),
    ],
)
def test_models_that_benchmarks_do_not_make_are_refused(raw, root, change, fault):
    entry = {"num_experts": 8, "size": 8, "batches": [1], "model": tiny(raw)["model"] | change}
    assert fault in refusal(raw | {"benchmarks": {"models": {"vit": entry}}}, root)


def test_a_benchmarks_sequence_fits_its_model(raw, root):
    model = tiny(with_language(raw, "gpt2"))["model"]
    entry = {"kind": "step", "num_experts": 8, "batches": [1], "model": model, "context": 12}
    message = refusal(raw | {"benchmarks": {"decode": {"gpt2": entry}}}, root)
    assert "context + 1 = 13 exceeds model.positions = 12" in message


def test_the_names_of_rules_are_all_known():
    """A task is a target beside them; Snakemake has one rule of each name."""
    texts = [path.read_text() for path in (ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk"))]
    written = set(re.findall(r"^ *rule (\w+):", "\n".join(texts), re.MULTILINE))
    assert len(written) > 20 and written <= rule_names()


def test_divisors_are_found_at_once_whatever_the_number():
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36] and divisors(1) == [1]
    assert divisors(10**12)[-1] == 10**12 and len(divisors(3072)) == 22


# Weights.


def with_weights(raw: dict, architecture: str, folder: Path, **changes) -> dict:
    """A task whose weights lie in a folder, as they are saved by transformers."""
    raw = with_language(raw, architecture)
    task = tiny(raw)
    task["model"]["weights"] = f"path:{folder.name}"
    model = parse_config(raw).tasks["tiny"].model
    folder.mkdir(exist_ok=True)
    config = {"model_type": architecture} | model.sizes | changes
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model.layers.{i}.mlp.weight" for i in range(2)]
    save_file({name: torch.zeros(1) for name in names}, folder / "model.safetensors")
    return raw


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "gemma"])
def test_weights_of_a_folder_are_looked_at_before_the_first_job(raw, root, architecture):
    folder = root / "weights"
    load_plan(with_weights(raw, architecture, folder), root)
    sizes = parse_config(with_weights(raw, architecture, folder)).tasks["tiny"].model.sizes
    for key in sizes:
        message = refusal(with_weights(raw, architecture, folder, **{key: 7}), root)
        assert "path:weights does not fit the configured model" in message
        assert f"{key} 7 (configured: {sizes[key]})" in message
    message = refusal(with_weights(raw, architecture, folder, model_type="llama"), root)
    assert f"architecture 'llama', but model.architecture is {architecture}" in message


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff" * 99, b"[1]", b"9" * 20])
def test_files_of_weights_that_are_missing_or_damaged_are_named(raw, root, file, content):
    changed = with_weights(raw, "gpt2", root / "weights")
    path = root / "weights" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    message = refusal(changed, root)
    assert message.startswith("path:weights cannot be read: ") and "path:FOLDER" in message


def test_gpt2s_own_configurations_leave_the_width_of_the_ffns_out(raw, root):
    raw = with_weights(raw, "gpt2", root / "weights", n_inner=None)
    assert "n_inner 64 (configured: 32)" in refusal(raw, root)
    tiny(raw)["model"]["d_ff"] = 64
    load_plan(raw, root)


def test_sharded_weights_are_looked_at_by_their_index(raw, root):
    raw, folder = with_weights(raw, "gpt2", root / "weights"), root / "weights"
    (folder / "model.safetensors").rename(folder / "1.safetensors")
    files = {f"h.{i}.mlp.weight": "1.safetensors" for i in range(3)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert "it has 3 blocks (configured: layers 2)" in refusal(raw, root)
    (folder / "1.safetensors").unlink()
    assert "1.safetensors" in refusal(raw, root)


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        ({}, None),
        ({"class_token": (1, 1, 9)}, "[1, 1, 9] where d_model is 16"),
        ({"conv_proj.weight": (16, 3, 2, 2)}, "[16, 3, 2, 2] where patch_size is 4"),
        ({"encoder.layers.encoder_layer_0.mlp.0.weight": (8, 16)}, "[8, 16] where d_ff is 32"),
        ({"encoder.layers.encoder_layer_2.ln_1.bias": (16,)}, "3 blocks (configured: layers 2)"),
    ],
)
def test_weights_of_a_vit_in_a_file_are_looked_at(raw, root, shapes, fault):
    tiny(raw)["model"]["weights"] = "path:vit.safetensors"
    assert "path:vit.safetensors cannot be read" in refusal(raw, root)
    fits = {f"encoder.layers.encoder_layer_{i}.ln_1.bias": (16,) for i in range(2)}
    tensors = {name: torch.zeros(shape) for name, shape in (fits | shapes).items()}
    save_file(tensors, root / "vit.safetensors")
    if fault:
        assert fault in refusal(raw, root)
    else:
        load_plan(raw, root)


def test_weights_of_a_student_are_looked_at_too(raw, root):
    student = {"kind": "distill", "label": "s", "epochs": 1, "lr": 0.1, "batch_size": 8}
    student["model"] = tiny(raw)["model"] | {"weights": "path:nowhere"}
    tiny(raw)["bases"] = {"student": student}
    assert "path:nowhere cannot be read" in refusal(raw, root)


def test_exits_need_a_block_before_the_last(raw, root):
    raw = with_everything(raw)
    tiny(raw)["ztw"]["every"] = 2
    assert "ztw.every = 2 leaves no block of 2 for an exit" in refusal(raw, root)


def test_a_stem_has_channels(raw, root):
    tiny(raw)["model"]["stem"] = [8, 0]
    assert "model.stem.1 = 0: Input should be greater than 0" in refusal(raw, root)


# What is drawn.


@styled
def test_a_label_or_class_may_hold_what_matplotlib_reads_as_mathematics():
    label = r"$\frac{$"
    figure = Figure(layout="constrained")
    legend(figure, [handle(label, look(0))])
    figure.draw_without_rendering()
    tensors = {"images": np.zeros((1, 3, 8, 8), np.uint8), "loads": np.zeros((1, 2, 2))}
    tensors["labels"] = np.zeros(1, int)
    load_maps.draw(tensors, {"classes": [label]}, label, label).draw_without_rendering()
    counts = {"task": "t", "variant": "a", "seed": 0, "layer": 0, "active": 1, "d_ff": 4}
    panel = {"task": "t", "title": label, "variants": ["a"], "labels": {"a": label}}
    rows = pd.DataFrame([counts | {"tokens": 1}])
    activity.draw(rows, **panel, looks={"a": 0}).draw_without_rendering()
    saved_share.draw([]).draw_without_rendering()


def test_a_suite_of_variants_without_experts_has_no_tables_of_them(raw, root):
    raw = with_everything(raw)
    own = {"variants": {"int8": {"method": "quantized", "label": "int8", "quantize": "int8"}}}
    tiny(raw)["ablations"] = own | {"figures": {}}
    del tiny(raw)["compatibility"]
    plan = load_plan(raw, root)
    assert task_tables(plan, "ablations", "tiny") == ["tradeoff", "summary"]
    assert {"layers", "activity"} <= {*task_tables(plan, "main", "tiny")}
    assert claim_tables(plan, "ablations").keys() == {"tradeoff", "summary"}


# Images.


def image_config(source: str = "path:set", **changes) -> ImagesConfig:
    values = {"image_size": 8, "validation": 2, "mean": [0.5] * 3, "std": [0.25] * 3}
    return ImagesConfig.model_validate({"kind": "images", "source": source, **values, **changes})


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)


@pytest.fixture
def tree(tmp_path) -> Path:
    """An ImageFolder tree of two classes, in `set`."""
    for part, count in (("train", 3), ("test", 1)):
        for name in ("a", "b"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray((RAMP // 257).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def as_hub(tree: Path, monkeypatch, images: list, labels: list) -> str:
    """A data set as on the hub, of one training part that also tests."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tree / "cache")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
    (tree / "hub").mkdir()
    for part in ("train", "test"):
        rows.to_parquet(tree / "hub" / f"{part}.parquet")
    return "hub:hub"


@pytest.mark.parametrize("source", ["path:set", "hub"])
def test_a_16_bit_ramp_is_the_8_bit_ramp(tree, monkeypatch, source):
    path = tree / "set/train/a/0.png"
    Image.fromarray(RAMP).save(path)
    if source == "hub":
        source = as_hub(tree, monkeypatch, [str(path)] * 2, [0, 1])
    pixels = load_images(source, "train", tree).pixels(0, 8)
    assert pixels.shape == (1, 8, 8) and pixels.float().mean() == pytest.approx(127.5, abs=0.5)
    assert np.abs(pixels[0].numpy() - RAMP / 257).max() <= 0.5


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_an_unknown_range_are_refused_by_name(tree, mode):
    image = Image.fromarray(RAMP.astype(np.int32 if mode == "I" else np.float32))
    (tree / "set/train/a/0.png").unlink()
    image.save(tree / "set/train/a/0.tiff")
    with pytest.raises(DataError, match=rf"a/0.tiff\) cannot be read .*\(mode {mode}\)"):
        load_images("path:set", "train", tree).pixels(0, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_other_modes_keep_their_brightness(tree, mode):
    grey = Image.fromarray((RAMP // 257).astype(np.uint8))
    image = grey.convert("RGB").convert(mode) if mode in ("P", "CMYK") else grey.convert(mode)
    (tree / "set/train/a/0.png").unlink()
    image.save(tree / f"set/train/a/0.{'tiff' if mode == 'CMYK' else 'png'}")
    pixels = load_images("path:set", "train", tree).pixels(0, 8)
    assert pixels.float().mean() == pytest.approx(127.5, abs=16)


def test_a_photograph_is_turned_as_its_camera_says(tree):
    image = Image.fromarray((RAMP // 257).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tree / "set/train/a/0.png", exif=exif)
    images = load_images("path:set", "train", tree)
    assert torch.equal(images.pixels(0, 8), images.pixels(1, 8).flip(1, 2))


def test_of_an_animation_the_first_picture_is_taken(tree):
    black, white = (Image.new("L", (8, 8), value) for value in (0, 255))
    (tree / "set/train/a/0.png").unlink()
    black.save(tree / "set/train/a/0.png", save_all=True, append_images=[white])
    assert load_images("path:set", "train", tree).pixels(0, 8).max() == 0


def test_a_damaged_image_is_named_by_its_file(tree):
    path = tree / "set/train/b/1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"path:set: image 4 \(.*set/train/b/1.png\) cannot be re"):
        prepare_images(image_config(), tree, 0)


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        ([0, None, 0], [0, 1, 1], "split train: row 1 .from 0. has no image"),
        ([0, 0, 0], [0, 1, None], "split train: row 2 .from 0. has no label"),
        ([0, 0, 0], [0, -1, 1], "image 1 .split train, row 1 from 0. has the label -1"),
    ],
)
def test_rows_of_the_hub_without_an_image_or_a_label_are_named(
    tree, monkeypatch, images, labels, fault
):
    path = str(tree / "set/train/a/0.png")
    given = [None if image is None else path for image in images]
    source = as_hub(tree, monkeypatch, given, labels)
    with pytest.raises(DataError, match=fault):
        load_images(source, "train", tree)


def test_one_class_of_images_is_refused_at_load(raw, root, tree, monkeypatch):
    (root / "images/train/dog").rmdir()
    assert "of the one class cat; at least two" in refusal(raw, root)
    source = as_hub(tree, monkeypatch, [str(tree / "set/train/a/0.png")] * 4, [1] * 4)
    with pytest.raises(DataError, match="hub:hub: all 4 training images are of one class"):
        prepare_images(image_config(source), tree, 0)


def test_images_that_cannot_be_held_out_in_equal_shares_are_refused_at_load(raw, root):
    tiny(raw)["data"]["validation"] = 3
    message = "data.validation = 3 images cannot be taken in equal shares from the 2 classes"
    assert message in refusal(raw, root)


# Texts.


def text_rows(count: int = 12) -> list[dict]:
    return [{"text": f"text number {i}", "label": "ab"[i % 2]} for i in range(count)]


def split_of(root: Path, rows: list, ending: str = "csv") -> object:
    """The set whose training rows are these, split."""
    (root / "texts").mkdir(exist_ok=True)
    for part, own in (("train", rows), ("test", [{"text": "new", "label": "a"}])):
        path = root / "texts" / f"{part}.{ending}"
        if ending == "csv":
            pd.DataFrame(own).to_csv(path, index=False)
        elif ending == "parquet":
            pd.DataFrame(own).to_parquet(path)
        else:
            path.write_text("\n".join(map(json.dumps, own)))
    values = {"kind": "texts", "source": "path:texts", "length": 9, "validation": 2}
    return split_labelled(data_config(values | {"tokenizer": {"vocab_size": 300}}), root)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_label_is_named_by_file_and_row(tmp_path, ending, empty):
    rows = text_rows()
    rows[5]["label"] = empty
    fault = rf"path:texts, train.{ending}: row 5 \(from 0\) has no label, as 1 of 12 rows"
    with pytest.raises(DataError, match=fault):
        split_of(tmp_path, rows, ending)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["text"], "row 0 .from 0. is no row of named cells"),
        ([[1, 2]], "row 0 .from 0. is no row of named cells"),
        ([{"text": "\ud800", "label": "a"}], "the text of row 0 .from 0. holds half a character"),
        (
            [*text_rows(), {"text": "more", "label": "ü"}, {"text": "x", "label": "u\u0308"}],
            "alike",
        ),
        (
            [row | {"label": "a"} for row in text_rows()],
            "all 12 training texts are of the class 'a'",
        ),
        ([{"text": "the same", "label": "ab"[i % 2]} for i in range(9)], "0 training texts are le"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(tmp_path, rows, fault):
    with pytest.raises(DataError, match=fault):
        split_of(tmp_path, rows, "jsonl")


def test_a_row_of_more_cells_than_the_header_is_no_row(tmp_path):
    split_of(tmp_path, text_rows())
    path = tmp_path / "texts/train.csv"
    path.write_text(path.read_text() + "a text, with a comma,a\n")
    values = {"kind": "texts", "source": "path:texts", "length": 9, "validation": 2}
    with pytest.raises(
        DataError, match="train.csv: row 12 .from 0. .*Quote texts that hold commas"
    ):
        split_labelled(data_config(values | {"tokenizer": {"vocab_size": 300}}), tmp_path)


# Tables.


NAMES = ["nan", "NA", "null", "none", "inf", "1", "1.0", "007", "1e5", "true", "n_a", "n.a"]


def test_tables_hold_every_name_that_the_configuration_takes(raw, tmp_path):
    variant = tiny(raw)["variants"]["sparse"]
    tiny(raw)["variants"] |= dict.fromkeys((name for name in NAMES if name != "NA"), variant)
    parse_config(raw)
    rows = [{"task": "1", "variant": name, "seed": 0, "knob_value": 0.5} for name in NAMES]
    write_rows(tmp_path / "table.csv", rows)
    assert gather([{"path": tmp_path / "table.csv"}]) == rows
    table = read_table(tmp_path / "table.csv", ["task", "variant", "seed", "knob_value"])
    for name in NAMES:
        assert len(table[table["variant"] == name]) == 1


@pytest.mark.parametrize(
    "path", sorted(REFERENCE.glob("miniature/tables/*.csv")), ids=lambda path: path.stem
)
def test_tables_come_through_gathering_byte_for_byte(path, tmp_path):
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "part.csv").write_text("".join(lines[:400]))
    write_rows(tmp_path / "table.csv", gather([{"path": tmp_path / "part.csv"}]))
    assert (tmp_path / "table.csv").read_text() == (tmp_path / "part.csv").read_text()


TABLE = "task,variant,seed,flops\na,nan,0,1.5\na,b,1,2\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (TABLE.replace("b,1", "b,c,1").encode(), "cannot be read"),
        (TABLE.replace("nan,0", "nan,c,0").encode(), "more cells than columns"),
        (TABLE.splitlines()[0].encode(), "no rows"),
        (TABLE.replace("flops", "flop").encode(), "no column flops"),
        (TABLE.replace("2", "two").encode(), "row 1 .from 0. has 'two' in the column flops"),
        (TABLE.replace("1.5", "").encode(), "row 0 .from 0. has an empty cell in the column flops"),
        (TABLE.replace("1.5", "0").encode(), "'0' in the column flops, where a number above 0"),
        (TABLE.replace("1.5", "inf").encode(), "row 0 .from 0. has 'inf' in the column flops"),
    ],
)
def test_a_damaged_table_is_named_with_its_row_and_column(tmp_path, content, fault):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    assert list(read_table(path, ["variant", "flops"])["variant"]) == ["nan", "b"]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"table.csv .*{fault}.*Delete it and run the same"):
        read_table(path, ["variant", "flops"])


def test_a_table_that_lacks_a_needed_column_is_not_gathered(tmp_path):
    write_rows(tmp_path / "one.csv", [{"a": 1, "b": 2}])
    write_rows(tmp_path / "two.csv", [{"a": 1}])
    entries = [{"path": tmp_path / "one.csv"}, {"path": tmp_path / "two.csv"}]
    with pytest.raises(DataError, match=r"two.csv is damaged: it has no column b"):
        gather(entries, ["b"])


def test_columns_that_some_tables_have_are_empty_in_the_rows_of_the_others(tmp_path):
    write_rows(tmp_path / "one.csv", [{"a": 1, "b": 2}])
    write_rows(tmp_path / "two.csv", [{"c": 3, "a": 4}])
    entries = [{"path": tmp_path / f"{name}.csv", "name": name} for name in ("one", "two")]
    for order in (entries, entries[::-1]):
        found = {row.pop("name"): row for row in gather(order, ["a"])}
        assert found == {"one": {"a": 1, "b": 2, "c": ""}, "two": {"a": 4, "b": "", "c": 3}}


@pytest.mark.parametrize(("metric", "value"), [("accuracy", 0.0), ("loss", 0.0)])
def test_nothing_is_relative_to_a_quality_of_0(tmp_path, metric, value):
    """As a test set of one sample, or of one class, makes it."""
    row = {"knob": "none", "knob_value": float("nan"), "flops": 9.0, "params": 3, metric: value}
    write_rows(tmp_path / "dense.csv", [row])
    entry = {"path": tmp_path / "dense.csv", "task": "t", "variant": "dense", "seed": 0}
    with pytest.raises(DataError, match=f"task t, seed 0: {metric} 0 of .*more test samples"):
        tradeoff([entry | {"reference": True}], [metric])


def test_the_columns_that_are_needed_are_those_of_the_tables():
    for name in ("tradeoff", "layers", "activity", "patch_load"):
        path = REFERENCE / f"miniature/tables/{name}.csv"
        assert len(read_table(path, COLUMNS[name])) > 10
    for path in (REFERENCE / "cpu/cpu.csv", REFERENCE / "h200/model.csv"):
        assert len(read_table(path, COLUMNS["table"])) > 10
    assert COLUMNS["tradeoff"] == TRADEOFF_COLUMNS
