"""Laws of the command line: its results, its one message, its exit codes, and what it leaves."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from PIL import Image
from small import others_later
from small_texts import make_texts
from typer.testing import CliRunner

from d2dmoe.cli import app
from d2dmoe.cli.download import consent, hub_bytes
from d2dmoe.cli.folders import check_free, whole
from d2dmoe.cli.output import plain, table
from d2dmoe.cli.samples import Data
from d2dmoe.errors import DataError, UserError

COMMANDS = ["inspect", "convert", "calibrate", "evaluate", "benchmark", "push"]
LABELS = ["river", "house"]
ANIMALS = ["cat", "dog", "eel"]


def call(*arguments: object, code: int = 0, **options) -> SimpleNamespace:
    """A call of the command line, which must end with an exit code."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert done.exit_code == code, (done.output, done.stderr, done.exception)
    return done


def fault(*arguments: object) -> str:
    """The one message of a call that the user must mend; nothing goes to stdout."""
    done = call(*arguments, code=1)
    assert not done.stdout and "Traceback" not in done.stderr
    *progress, message = done.stderr.strip().splitlines()
    assert message.startswith("error: ") and not any("error" in line for line in progress)
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def texts(folder) -> Path:
    """A csv with forty texts of two classes."""
    path = folder / "texts.csv"
    rows = [f'{i},"{text}",{LABELS[i % 2]}' for i, text in enumerate(make_texts(40, seed=0))]
    path.write_text("\n".join(["number,text,topic", *rows]) + "\n", encoding="utf-8")
    return path


def test_help_comes_without_the_libraries_that_compute():
    code = "import sys, d2dmoe.cli; print(*{'torch', 'transformers', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_help_names_all_commands_and_exit_codes():
    text = call("--help").stdout
    assert all(command in text for command in [*COMMANDS, "130", "--json"])


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_teaches_by_examples(command):
    text = call(command, "--help").stdout
    assert "Examples:" in text and text.count(f"d2dmoe {command} ") >= 2
    assert "--json" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["evaluate", "model"],
        ["evaluate", "model", "--data", "x.csv", "--batch-size", "0"],
        ["calibrate", "model", "--data", "x.csv"],
        ["calibrate", "model", "--data", "x.csv", "--flops-ratio", "0.5", "--max-loss-increase", 1],
        ["calibrate", "model", "--data", "x.csv", "--flops-ratio", "1.5"],
    ],
)
def test_a_wrong_call_ends_with_2(arguments):
    assert not call(*arguments, code=2).stdout


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{}/nothing", "no folder"),
        ("{}/empty", "config.json"),
        ("{}/texts.csv", "no folder"),
        ("{}/damaged", "config.json"),
        ("{}/list", "config.json"),
        ("{}/foreign", "FrobnicatorForCausalLM"),
        ("{}/of_timm", "model.safetensors"),
        ("{}/no_vit", "vit_of_mine"),
        ("timm:vit_of_mine", "vit_of_mine"),
        ("torchvision:vit_of_mine", "vit_of_mine"),
        ("{}", "config.json"),
    ],
)
def test_what_is_no_model_is_one_message(folder, texts, model, said):
    for name, config in {
        "damaged": "{",
        "list": "[]",
        "of_timm": '{"architecture": "vit_tiny_patch16_224", "num_classes": 3}',
        "no_vit": '{"architecture": "vit_of_mine", "num_classes": 3}',
        "foreign": '{"model_type": "gpt2", "architectures": ["FrobnicatorForCausalLM"]}',
    }.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(config)
    (folder / "empty").mkdir(exist_ok=True)
    assert said in fault("inspect", model.format(folder))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps", "xla", "meta"])
def test_a_device_that_is_not_there_is_one_short_message(folder, device):
    message = fault("inspect", folder / "nothing", "--device", device)
    assert f"--device {device}" in message and "Try --device cpu" in message and len(message) < 300


def test_the_hub_is_asked_for_a_name_that_is_no_folder(monkeypatch):
    def refuse(name, **options):
        raise OSError(f"no {name}\nand more")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    message = fault("inspect", "nobody/nothing")
    assert "no nobody/nothing" in message and "and more" not in message


@pytest.mark.parametrize("name", ["nothing.csv", "texts.docx", "empty"])
def test_data_that_are_not_there_are_refused_before_a_model_is_loaded(folder, name):
    (folder / "texts.docx").write_text("text\na\n")
    (folder / "empty").mkdir(exist_ok=True)
    arguments = ["convert", folder / "no-model", folder / "new", "--data", folder / name]
    assert name in fault(*arguments)


def test_an_interrupted_command_ends_with_130(monkeypatch, folder):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("d2dmoe.cli.models.open_model", interrupt)
    done = call("inspect", "model", code=130)
    assert not done.stdout and "interrupted" in done.stderr


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("d2dmoe.cli.models.open_model", lambda *_: 1 / 0)
    assert isinstance(call("inspect", "model", code=1).exception, ZeroDivisionError)


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    def miss(*_arguments):
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr("d2dmoe.cli.models.open_model", miss)
    assert "pip install 'd2dmoe[vision]'" in fault("inspect", "model")


def test_splits_are_disjoint_hold_all_and_follow_the_seed(texts):
    parts = {name: Data(texts, seed=3).split(name) for name in ("train", "validation", "test")}
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 32, "validation": 4, "test": 4,
    }  # fmt: skip
    assert len({row.content for rows in parts.values() for row in rows}) == 40
    assert Data(texts, seed=3).split("test") == parts["test"]
    assert Data(texts, seed=4).split("test") != parts["test"]
    assert Data(texts, seed=3, samples=2).split("test") == parts["test"][:2]


def test_equal_texts_are_in_one_split(folder):
    path = folder / "repeated.jsonl"
    lines = [json.dumps({"text": f"text {i % 7}"}) for i in range(50)]
    path.write_text("\n".join(lines))
    seen = [{row.content for row in Data(path).split(n)} for n in ("train", "validation", "test")]
    assert all(seen) and sum(map(len, seen)) == 7


@pytest.mark.parametrize("other", ["test", "validation", "val"])
def test_splits_that_the_data_bring_along_are_kept(tmp_path, other):
    (tmp_path / "train.txt").write_text("\n\n".join(f"train {i}" for i in range(20)))
    (tmp_path / f"{other}.txt").write_text("\n\n".join(f"other {i}" for i in range(5)))
    data = Data(tmp_path)
    held_out, test, train = (data.split(name) for name in ("validation", "test", "train"))
    assert len(test) == 5 and all(row.content.startswith("other") for row in test)
    assert len(held_out) == 2 and len(train) == 18
    assert all(row.content.startswith("train") for row in (*held_out, *train))


def test_images_have_the_classes_of_their_folders(tmp_path):
    for index in range(12):
        file = tmp_path / "set" / LABELS[index % 2] / f"{index}.PNG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(file)
        (file.parent / "notes.txt").write_text("no image")
    rows = [
        row
        for name in ("train", "validation", "test")
        for row in Data(tmp_path / "set").split(name)
    ]
    assert len(rows) == 12 and all(row.content.parent.name == row.label for row in rows)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "text,topic\nfine,x\n,y\n", "row 1"),
        ("b.csv", "text,topic\nfine,x\nfine too,\n", "row 1"),
        ("c.csv", "text,topic\nfine,x\none,two,three\n", "Quote"),
        ("d.csv", "review,topic\nfine,x\n", "--text-column"),
        ("e.csv", "text,subject\nfine,x\n", "--label-column"),
        ("f.jsonl", '{"text": "fine", "topic": 1}\n{"text": 3, "topic": 1}\n', "row 1"),
        ("g.jsonl", '{"text": "fine", "topic": 1}\n{"text": "x", "topic": null}\n', "row 1"),
        ("h.jsonl", '{"text": "fine", "topic": 1}\n{broken\n', "cannot be read"),
        ("i.jsonl", '[{"text": "\\ud83d", "topic": 1}]', "half a character"),
        ("j.json", "[1, 2]", "row 0"),
        ("k.csv", "text,topic\n", "too few"),
        ("l.parquet", "no parquet", "cannot be read"),
    ],
)
def test_faults_of_texts_name_row_and_remedy(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        Data(tmp_path / name, label="topic").split("train")
    assert name in str(caught.value)


def test_texts_of_a_line_each_are_told_what_parts_them(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(make_texts(30, seed=0)))
    assert "blank lines" in fault("convert", "x", tmp_path / "new", "--data", tmp_path / "a.txt")


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "x", "{}/new", "--data", "{}/a.csv", "--attention", "z"],
        ["calibrate", "{}", "--data", "{}/a.csv", "--flops-ratio", "0.5", "--rule", "topk"],
    ],
)
def test_unknown_names_are_refused_before_anything_is_read(tmp_path, arguments):
    message = fault(*(argument.format(tmp_path) for argument in arguments))
    assert arguments[-1] in message and "a.csv" not in message


def test_an_exchange_of_folders_that_fails_is_undone(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("1")
    rename = Path.rename

    def fail(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "model"):
        pass
    assert (tmp_path / "model" / "config.json").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="another place or name"):
        check_free(tmp_path / ("n" * 300), force=False)
    check_free(tmp_path / "deep" / "new", force=False)
    assert not [*tmp_path.iterdir()]

    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UserError, match="Read-only"):
        check_free(tmp_path / "new", force=False)


def test_a_folder_is_whole_or_not_there(tmp_path):
    with whole(tmp_path / "deep" / "new") as new:
        (new / "config.json").write_text("1")
        assert not (tmp_path / "deep" / "new").exists()
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "deep" / "new") as new:
        (new / "config.json").write_text("2")
        raise KeyboardInterrupt
    assert (tmp_path / "deep" / "new" / "config.json").read_text() == "1"
    with whole(tmp_path / "deep" / "new") as new:
        (new / "config.json").write_text("3")
    assert (tmp_path / "deep" / "new" / "config.json").read_text() == "3"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "model").mkdir()
    check_free(tmp_path / "model", force=False)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="--force"):
        check_free(tmp_path / "model", force=False)
    check_free(tmp_path / "model", force=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-you.txt").write_text("dear you")
    for taken in ("letters", "letters/to-you.txt", "letters/to-you.txt/below"):
        with pytest.raises(UserError):
            check_free(tmp_path / taken, force=True)


def test_a_gigabyte_is_asked_for(monkeypatch):
    consent("small", 10**9, yes=False)
    consent("large", 10**10, yes=True)
    with pytest.raises(UserError, match=r"10.0 GB.*--yes"):  # tests have no terminal
        consent("large", 10**10, yes=False)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    for answer in (True, False):
        monkeypatch.setattr(typer, "confirm", lambda *_, answer=answer, **__: answer)
        if answer:
            consent("large", 10**10, yes=False)
        else:
            with pytest.raises(UserError, match="nothing was downloaded"):
                consent("large", 10**10, yes=False)


def test_only_weights_that_will_be_fetched_count(monkeypatch):
    sizes = {
        "model-1.safetensors": 5, "model-2.safetensors": 7, "pytorch_model.bin": 100,
        "onnx/model.safetensors": 1000, "config.json": 1,
    }  # fmt: skip
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    found = SimpleNamespace(siblings=siblings, sha="0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: found)
    assert hub_bytes("some/model") == 12
    cached = {"model-1.safetensors": "/a/path"}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _, file, **__: cached.get(file)
    )
    assert hub_bytes("some/model") == 7


def test_a_large_model_of_the_hub_is_refused_without_a_terminal(monkeypatch):
    monkeypatch.setattr("d2dmoe.cli.of_transformers.hub_bytes", lambda *_: 3 * 10**9)
    message = fault("inspect", "some/model")
    assert "3.0 GB" in message and "--yes" in message


def test_results_are_plain_values():
    value = {1: Path("a"), "b": (float("nan"), {"c": SimpleNamespace(to_dict=lambda: [1.5])})}
    assert plain(value) == {"1": "a", "b": [None, {"c": [1.5]}]}


@pytest.mark.parametrize("public", [False, True])
def test_push_uploads_a_converted_folder_private_unless_told_otherwise(
    tmp_path, monkeypatch, public
):
    layers = {"layer": {"router": {"kind": "regression", "width": 4}}}
    (tmp_path / "config.json").write_text(json.dumps({"d2dmoe": {"layers": layers}}))
    seen = {}

    def create(self, name, **options):
        seen.update(options)
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload(self, **options):
        seen.update(options)
        return SimpleNamespace(oid="0a1b")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    done = call("push", tmp_path, "sparse", "--json", *["--public"] * public)
    assert json.loads(done.stdout)["repository"] == "me/sparse" == seen["repo_id"]
    assert seen["private"] is not public and seen["folder_path"] == tmp_path


def test_push_refuses_what_is_not_converted_or_not_taken(tmp_path, monkeypatch):
    assert "no model" in fault("push", tmp_path, "me/sparse")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "no routers" in fault("push", tmp_path, "me/sparse")
    layers = {"layer": {"router": {}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"layers": layers}}))

    def refuse(self, name, **options):
        raise PermissionError(f"403 for {name}\nmuch more")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    assert "403 for me/sparse" in fault("push", tmp_path, "me/sparse")


def test_tables_are_aligned():
    lines = table(("name", "loss"), [("a", "1.25"), ("longer", "10")]).splitlines()
    assert lines[0].startswith("name") and lines[-1].startswith("longer")
    assert len({len(line) for line in lines if line.strip()}) == 1


@pytest.fixture(scope="module")
def bert(folder) -> Path:
    """A tiny sentence encoder, with a tokenizer of whole words."""
    import torch
    from small_texts import WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    ids = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(ids), intermediate_size=64, **sizes)
    BertModel(config).save_pretrained(folder / "bert")
    (folder / "bert" / "1_Pooling").mkdir()
    (folder / "bert" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    return folder / "bert"


def test_convert_writes_a_whole_folder_once(bert, texts, folder):
    arguments = ["convert", bert, folder / "new", "--data", texts, "--router-steps", 2]
    done = call(*arguments, "--expert-size", 16, "--json")
    found = json.loads(done.stdout)
    assert [layer["experts"] for layer in found["layers"]] == [4, 4]
    names = {path.name for path in (folder / "new").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "1_Pooling"} <= names
    before = (folder / "new" / "model.safetensors").read_bytes()
    assert "--force" in fault(*arguments)
    assert (folder / "new" / "model.safetensors").read_bytes() == before
    call(*arguments, "--force", "--seed", 1)
    assert (folder / "new" / "model.safetensors").read_bytes() != before
    assert "does not divide" in fault(*arguments, "--force", "--expert-size", 15)


@pytest.fixture(scope="module")
def photos(folder) -> Path:
    """Small images of three classes, nine for each split."""
    for index in range(27):
        split = ("train", "validation", "test")[index % 3]
        file = folder / "photos" / split / ANIMALS[index // 3 % 3] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 4.0 * index).convert("RGB").save(file)
    return folder / "photos"


@pytest.fixture(scope="module")
def of_timm(folder) -> str:
    """A folder as timm writes it, of a model with a preparation and classes of its own."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=32, pos_drop_rate=0.1)
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "input_size": (3, 32, 32)}
    timm.models.save_for_hf(
        model, folder / "of timm", {"label_names": ANIMALS}, safe_serialization=True
    )
    return str(folder / "of timm")


@pytest.fixture
def of_torchvision(tmp_path, monkeypatch) -> str:
    """A small model among torchvision's, whose weights lie in the cache of torch."""
    import torch
    from torchvision.models import VisionTransformer, WeightsEnum, _api
    from torchvision.transforms._presets import ImageClassification

    about = {"categories": ANIMALS, "_file_size": 10_000}  # MB: would be asked for
    prepared = partial(ImageClassification, crop_size=32, resize_size=32)

    class Weights(WeightsEnum):
        DEFAULT = _api.Weights("https://nowhere/tiny.pth", prepared, about)

    def tiny(*, weights: Weights | None = None, num_classes: int = 3) -> torch.nn.Module:
        model = VisionTransformer(32, 16, 2, 2, 16, 64, num_classes=num_classes)
        torch.nn.init.normal_(model.heads.head.weight)  # a fresh one is zero
        return model

    tiny.__module__ = "torchvision.models.tiny"
    monkeypatch.setitem(_api.BUILTIN_MODELS, "tiny", tiny)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(tiny().state_dict(), tmp_path / "hub" / "checkpoints" / "tiny.pth")
    return "torchvision:tiny"


@pytest.mark.parametrize("made_of", others_later(["of_timm", "of_torchvision"], ["of_torchvision"]))
def test_the_whole_way_of_a_model_for_images(made_of, photos, tmp_path, request):
    """Images are prepared as the model's weights say, before and after the conversion."""
    original, new = request.getfixturevalue(made_of), tmp_path / "new"
    data = ["--data", photos, "--batch-size", 8, "--json"]
    found = json.loads(call("inspect", original, *data).stdout)
    assert found["ffns"] and all(0 < ffn["firing"] <= 1 for ffn in found["ffns"])
    sizes = ["--expert-size", 16, "--router-width", 4]
    call("convert", original, new, *data, "--router-steps", 2, *sizes)
    call("calibrate", new, *data, "--flops-ratio", 0.9)
    measured = json.loads(call("evaluate", new, *data, "--against", original).stdout)
    assert measured["quality"] == "accuracy on the labels"
    one, every, point = (
        measured["measured"][name] for name in ("original", "every expert", "operating point")
    )
    assert every["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert every["accuracy"] == one["accuracy"]
    assert point["flops"] < every["flops"]


def test_a_model_of_timm_on_the_hub_is_read_as_its_folder(of_timm, monkeypatch):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(of_timm)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: config)
    monkeypatch.setattr("d2dmoe.cli.of_transformers.hub_bytes", lambda *_: 0)
    monkeypatch.setattr("d2dmoe.cli.of_transformers.fetch", lambda *_: Path(of_timm))
    assert json.loads(call("inspect", "me/mine", "--json").stdout)["class"] == "VisionTransformer"


def test_a_damaged_folder_of_timm_is_one_message(of_timm, tmp_path):
    shutil.copytree(of_timm, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "safe_serialization=True" in fault("inspect", tmp_path / "cut")
