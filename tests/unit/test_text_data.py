"""Laws of labelled texts and corpora: disjoint fixed splits, exact tokens, clear errors."""

import csv
import errno
import gzip
import io
import itertools
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from small_texts import CARER, make_c4, make_carer, make_openwebtext, make_texts

from d2dmoe.config.data import CorpusConfig, TextsConfig, check_source, data_config
from d2dmoe.config.training import TrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.data.prepare import prepare
from d2dmoe.data.splits import open_split
from d2dmoe.data.text_splits import choose_validation, fingerprint, first_proportional, load_texts
from d2dmoe.data.tokenizer import load_tokenizer, make_tokenizer
from d2dmoe.data.tokens import byte_sizes
from d2dmoe.errors import ConfigError, DataError, UserError
from d2dmoe.io.files import sha256

SPLITS = ("train", "validation", "test")
TRAINED = {"source": "train", "vocab_size": 300}
CPU = torch.device("cpu")


def texts_config(source: str = "path:set", **changes) -> TextsConfig:
    values = {"kind": "texts", "source": source, "length": 24, "validation": 12}
    return data_config({**values, "tokenizer": TRAINED, **changes})


def corpus_config(source: str = "path:set", **changes) -> CorpusConfig:
    values = {"kind": "corpus", "source": source, "length": 10, "validation": 5}
    return data_config({**values, "tokenizer": TRAINED, **changes})


def save_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_texts(path: Path, texts: list[str]) -> None:
    save_rows(path, [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)])


def prepared(cfg, root: Path, name: str = "out") -> Path:
    """Prepare a set with its tokenizer, in a folder of that name."""
    make_tokenizer(cfg, root, root / name / "tokenizer.json")
    prepare(cfg, root, root / name, root / name / "tokenizer.json")
    return root / name


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository with a set in files, which serves as labelled texts and as a corpus."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    save_texts(tmp_path / "set" / "train.jsonl", make_texts(60, seed=0))
    save_texts(tmp_path / "set" / "test.jsonl", make_texts(10, seed=1))
    return tmp_path


# Configuration


def test_every_key_has_a_description():
    for model in (TextsConfig, CorpusConfig):
        schema = model.model_json_schema()
        nested = schema["$defs"]["TokenizerConfig"]["properties"]
        keys = {k: v for k, v in schema["properties"].items() if k != "tokenizer"} | nested
        assert all("description" in v for v in keys.values())


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "sounds"},
        {"source": "torchvision:MNIST"},
        {"length": 0},
        {"subset": "en"},  # not of the hub
        {"streaming": True},  # with a tokenizer to train
        {"image_size": 8},
    ],
)
def test_impossible_values_are_refused(change):
    with pytest.raises(ValidationError):
        corpus_config(**change)


def test_missing_files_are_found_before_any_job(root):
    check_source(texts_config(), root)
    for source in ("vendored:nothing", "path:nothing", "hub:./nothing", "path:set/train.png"):
        (root / "set" / "train.png").touch()
        with pytest.raises(DataError, match="nothing|no known kind"):
            check_source(corpus_config(source), root)
    single = corpus_config("path:set/train.jsonl", test=3)
    check_source(single, root)
    for cfg in (texts_config(single.source), corpus_config(single.source)):
        with pytest.raises(DataError, match=r"train.\* and test.\*.*files found: train.jsonl"):
            check_source(cfg, root)
    (root / "set" / "train.csv").touch()
    with pytest.raises(DataError, match="both train.csv and train.jsonl are there"):
        check_source(texts_config(), root)


# Splits


@pytest.mark.parametrize("make_config", [texts_config, corpus_config])
def test_no_text_nor_a_copy_of_it_is_in_two_splits(make_config, root, caplog):
    train, test = make_texts(40, seed=0), make_texts(10, seed=1)
    copies = [f"  {text.upper()}\n" for text in (*train, *test)]
    save_texts(root / "set" / "train.jsonl", train + test[:5] + copies)
    save_texts(root / "set" / "test.jsonl", test)
    cfg = make_config(validation=8)
    with caplog.at_level("INFO", "d2dmoe"):
        parts = {name: load_texts(cfg, name, root)[0] for name in SPLITS}
    prints = {name: set(map(fingerprint, texts)) for name, texts in parts.items()}
    assert prints["train"] and not prints["train"] & (prints["validation"] | prints["test"])
    assert not prints["validation"] & prints["test"]
    assert prints["train"] | prints["validation"] == set(map(fingerprint, train))
    assert parts["test"] == test and len(parts["validation"]) == 8
    dropped = 95 - len(parts["train"]) - len(parts["validation"])
    assert f"{dropped} training texts are copies of held-out ones" in caplog.text and dropped > 15


@pytest.mark.parametrize("make_config", [texts_config, corpus_config])
def test_the_same_config_gives_the_same_bytes(make_config, root):
    a, b = (prepared(make_config(), root, name) for name in "ab")
    for file in [f"{s}.safetensors" for s in SPLITS] + ["dataset.json", "tokenizer.json"]:
        assert (a / file).read_bytes() == (b / file).read_bytes()


@pytest.mark.parametrize("make_config", [texts_config, corpus_config])
def test_the_split_seed_chooses_the_held_out_texts(make_config, root):
    cfg = make_config()
    first, again, other = (load_texts(cfg, "validation", root, seed)[0] for seed in (0, 0, 1))
    assert first == again != other
    stored = make_texts(60, seed=0)
    assert first == sorted(first, key=stored.index) != stored[: len(first)]
    train = load_texts(cfg, "train", root)[0]
    assert train == [text for text in stored if text not in first]


@pytest.mark.parametrize("make_config", [texts_config, corpus_config])
def test_too_large_a_validation_set_is_refused(make_config, root):
    for count in (60, 61, 1000):
        with pytest.raises(ConfigError, match="(?s)validation: .*Hold out fewer|train documents"):
            prepared(make_config(validation=count, tokenizer=given(root, make_config)), root)


def given(root: Path, make_config=corpus_config) -> dict:
    """A ready tokenizer of both kinds, for one of them."""
    if not (root / "given").exists():
        cfg = corpus_config(tokenizer=TRAINED | {"end_of_text": "[PAD]"})
        make_tokenizer(cfg, root, root / "given")
    own = {"end_of_text": "[PAD]"} if make_config is corpus_config else {}
    return {"source": "path:given"} | own


def test_validation_texts_are_proportional_to_their_classes():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    for seed in (0, 1):
        chosen = choose_validation(labels, 10, ["a", "b", "c"], seed)
        assert labels[chosen].bincount().tolist() == [5, 3, 2]
        assert chosen.tolist() == sorted(set(chosen.tolist()))
    with pytest.raises(ConfigError, match="no training text would be left of c"):
        choose_validation(torch.tensor([0, 0, 0, 2]), 3, ["a", "b", "c"], 0)


def test_first_proportional_gives_what_is_left_over_to_the_largest_remainders():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
    assert first_proportional(labels, 4).tolist() == [0, 1, 4, 5]  # shares 2, 1.5 and 0.5
    assert first_proportional(labels, 99).tolist() == first_proportional(labels, None).tolist()
    assert [len(first_proportional(labels, n)) for n in range(9)] == list(range(9))


def test_trials_keep_the_same_held_out_texts(root):
    whole, small = texts_config(), texts_config(max_train=7, max_test=4)
    assert load_texts(whole, "validation", root)[0] == load_texts(small, "validation", root)[0]
    train, labels = load_texts(small, "train", root)
    assert train == [t for t in load_texts(whole, "train", root)[0] if t in train]
    assert labels.bincount().tolist() == [4, 3]
    assert load_texts(small, "test", root)[1].bincount().tolist() == [2, 2]


# Labelled texts


def test_carer_is_read_in_its_published_form(root):
    texts = make_carer(root / "emotion")
    cfg = texts_config("hub:emotion", subset="split")
    folder = prepared(cfg, root)
    about = json.loads((folder / "dataset.json").read_text())
    assert about["classes"] == CARER and about["sizes"] == {
        "train": 108,
        "validation": 12,
        "test": 24,
    }
    test, labels = load_texts(cfg, "test", root)
    assert test == texts["test"]  # the source's validation split is left alone
    assert torch.equal(open_split(folder, "test").labels, labels)
    assert open_split(folder, "validation").labels.bincount().tolist() == [2, 1, 1, 1, 1, 6]


def test_a_test_split_whose_labels_are_withheld_is_passed_over(root):
    texts = make_carer(root / "emotion", test_label=-1)
    cfg = texts_config("hub:emotion", subset="split")
    assert load_texts(cfg, "test", root)[0] == texts["validation"]


def test_tokens_are_those_of_the_texts_cut_so_that_the_last_special_one_stays(root):
    cfg = texts_config()
    folder = prepared(cfg, root)
    tokenizer = load_tokenizer(cfg, folder / "tokenizer.json")
    start, end = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    cut = 0
    for name in SPLITS:
        split, (texts, labels) = open_split(folder, name), load_texts(cfg, name, root)
        assert torch.equal(split.labels, labels) and len(split) == len(texts)
        assert int(split.lengths.sum()) == len(split.tokens) and split.lengths.max() <= 24
        for i, text in enumerate(texts):
            tokens = split.tokens[split.offsets[i] : split.offsets[i + 1]].tolist()
            assert tokens[0] == start and tokens[-1] == end and end not in tokens[:-1]
            decoded = tokenizer.decode(tokens).removesuffix("�")  # cut within a character
            assert text.startswith(decoded.rstrip("�"))
            assert decoded == text or len(tokens) == 24
            cut += len(tokens) == 24
    assert cut > 5


def test_batches_are_padded_to_their_longest_text(root):
    folder = prepared(texts_config(tokenizer=TRAINED | {"pad": "<pad>"}, length=200), root)
    split, indices = open_split(folder, "train"), torch.tensor([5, 0, 30])
    (tokens, mask, labels), pad = split.read(indices), split.about["pad_id"]
    assert tokens.dtype == mask.dtype == labels.dtype == torch.int64
    assert torch.equal(mask.sum(1), split.lengths[indices])
    assert tokens.shape[1] == split.lengths[indices].max() and len(mask.sum(1).unique()) > 1
    assert torch.equal(tokens == pad, mask == 0)
    for row, real, i in zip(tokens, mask.bool(), indices.tolist(), strict=True):
        assert torch.equal(row[real], split.tokens[split.offsets[i] : split.offsets[i + 1]].long())
    inputs, targets = split.batch((tokens, mask, labels), CPU)
    assert torch.equal(inputs["input_ids"], tokens) and torch.equal(targets, labels)
    assert torch.equal(inputs["attention_mask"], mask) and split.about["vocab_size"] > tokens.max()
    trained = split.training_batch(
        (tokens, mask, labels), TrainingConfig(epochs=1, lr=1.0), torch.Generator(), CPU
    )
    assert torch.equal(trained[0]["input_ids"], tokens) and torch.equal(trained[1], labels)


def test_workers_and_resuming_change_no_batch(root):
    split = open_split(prepared(texts_config(), root), "train")

    def batches(start: int, workers: int) -> list[tuple[dict, torch.Tensor]]:
        cfg = TrainingConfig(epochs=1, lr=1.0, batch_size=8, workers=workers)
        return list(TrainingBatches(split, cfg, 1, CPU).stream(start))

    alone, others = batches(0, 0), batches(0, 2) + batches(2, 0)
    assert len(alone) == 6 and sum(len(labels) for _, labels in alone) == len(split) == 48
    for (inputs, labels), (same, same_labels) in zip(alone + alone[2:], others, strict=True):
        assert torch.equal(labels, same_labels) and inputs.keys() == same.keys()
        assert all(torch.equal(inputs[key], same[key]) for key in inputs)


def as_file(rows: list[dict], suffix: str) -> bytes:
    """Rows in the format that a file name's ending promises."""
    if suffix.startswith("csv"):
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        content = buffer.getvalue()
    else:
        content = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
    return gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode()


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "json", "json.gz", "jsonl", "jsonl.gz"])
def test_files_of_every_kind_give_the_same_texts(suffix, root):
    texts = ['a "quoted", text', "two\nlines", "null", "x" * 200_000, "2020", *make_texts(28, 0)]
    rows = [{"what": i % 11, "said": text, "more": 0} for i, text in enumerate(texts)]
    (root / "other").mkdir()
    (root / "other" / f"train.{suffix}").write_bytes(as_file(rows, suffix))
    (root / "other" / f"val.{suffix}").write_bytes(as_file([rows[5] | {"said": "new"}], suffix))
    cfg = texts_config("path:other", text="said", label="what", validation=11)
    train, numbers = load_texts(cfg, "train", root)
    assert load_texts(cfg, "test", root)[0] == ["new"]
    assert sorted(train + load_texts(cfg, "validation", root)[0]) == sorted(texts)
    # Classes that are numbers are sorted as such: 10 comes after 9.
    assert [texts.index(text) % 11 for text in train] == numbers.tolist()


def test_vendored_parquet_is_verified(root):
    from datasets import ClassLabel, Dataset, Features, Value

    folder = root / "resources" / "tiny"
    folder.mkdir(parents=True)
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    sums = []
    for seed, part in enumerate(("train", "test")):
        rows = {"text": make_texts(40, seed), "label": [0, 1] * 20}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{part}.parquet")
        sums.append(f"{sha256(folder / f'{part}.parquet')}  {part}.parquet\n")
    (folder / "SHA256SUMS").write_text("".join(sums))
    cfg = texts_config("vendored:tiny")
    assert load_texts(cfg, "test", root)[0] == make_texts(40, 1)
    assert open_split(prepared(cfg, root), "test").about["classes"] == ["no", "yes"]
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[:-100])
    for read in (lambda: prepared(cfg, root), lambda: load_texts(cfg, "train", root)):
        with pytest.raises(DataError, match="train.parquet is damaged: expected.*git checkout"):
            read()


# Corpora


def stream_of(cfg: CorpusConfig, part: str, root: Path, folder: Path) -> list[int]:
    """The tokens of all documents of a split, each with its end."""
    tokenizer = load_tokenizer(cfg, folder / "tokenizer.json")
    end = tokenizer.token_to_id(cfg.tokenizer.end_of_text)
    texts, _ = load_texts(cfg, part, root)
    return [token for text in texts for token in [*tokenizer.encode(text).ids, end]]


def test_blocks_tile_the_stream_and_predict_every_token_once(root):
    cfg = corpus_config()
    folder = prepared(cfg, root)
    about = json.loads((folder / "dataset.json").read_text())
    for name in SPLITS:
        split, stream = open_split(folder, name), stream_of(cfg, name, root, folder)
        assert len(split) == (len(stream) - 1) // 10 == about["sizes"][name]
        (tokens,) = split.read(torch.arange(len(split)))
        inputs, targets = split.batch((tokens,), CPU)
        assert inputs["input_ids"].shape == targets.shape == (len(split), 10)
        assert inputs["input_ids"].flatten().tolist() == stream[: len(split) * 10]
        assert targets.flatten().tolist() == stream[1 : len(split) * 10 + 1]
        assert split.lengths.tolist() == [10] * len(split) and tokens.dtype == torch.int64
        assert about["tokens"][name] == targets.numel()
        assert about["documents"][name] == stream.count(about["end_of_text_id"])


def test_bytes_are_those_of_the_predicted_text(root):
    # Characters of several bytes may be cut between blocks, so they are left out here.
    for part, seed in (("train", 0), ("test", 1)):
        texts = [t.encode("ascii", "ignore").decode() for t in make_texts(60, seed)]
        save_texts(root / "set" / f"{part}.jsonl", texts)
    cfg = corpus_config(max_test=7)
    folder = prepared(cfg, root)
    tokenizer = load_tokenizer(cfg, folder / "tokenizer.json")
    for name in SPLITS:
        split = open_split(folder, name)
        _, targets = split.batch(split.read(torch.arange(len(split))), CPU)
        decoded = tokenizer.decode(targets.flatten().tolist())  # leaves special tokens out
        assert split.about["bytes"][name] == len(decoded.encode())


@pytest.mark.parametrize("text", ["a b", "naïve 東京 😀😀 x", "  spaces \n\t ", "\u2028e\u0301🏳️‍🌈"])
def test_the_bytes_of_all_tokens_are_those_of_the_text(text, root):
    cfg = corpus_config(tokenizer=given(root))
    encoding = load_tokenizer(cfg, root / "given").encode(text)
    sizes = byte_sizes(text, encoding.offsets)
    assert sizes.sum() == len(text.encode()) and len(sizes) == len(encoding.ids)
    assert sizes.min() >= 0 and byte_sizes(text, []).sum() == 0
    if text.isascii():
        assert sizes.tolist() == [len(token) for token in encoding.tokens]


def test_bytes_of_tokenizers_that_drop_or_add_text():
    # "[CLS] un ##known [SEP]" of "  unknown  ": what is dropped belongs to a neighbour.
    assert byte_sizes("  unknown  ", [(0, 0), (2, 4), (4, 9), (0, 0)]).tolist() == [0, 4, 5, 2]


def test_openwebtext_has_no_test_split_so_some_documents_are_held_out(root):
    texts = make_openwebtext(root / "openwebtext")
    cfg = corpus_config("hub:openwebtext", test=6)
    parts = {name: load_texts(cfg, name, root)[0] for name in SPLITS}
    assert [len(parts[name]) for name in SPLITS] == [29, 5, 6]
    assert sorted(itertools.chain(*parts.values())) == sorted(texts)
    assert open_split(prepared(cfg, root), "test").about["documents"]["test"] == 6
    with pytest.raises(ConfigError, match="test: hub:openwebtext has no test split .*has train"):
        load_texts(corpus_config("hub:openwebtext"), "train", root)


def test_c4_is_streamed_only_as_far_as_needed(root):
    texts = make_c4(root / "c4")
    (root / "c4" / "en" / "c4-train.00001-of-00002.json.gz").write_bytes(b"not fetched")
    options = {"subset": "en", "streaming": True, "tokenizer": given(root)}
    cfg = corpus_config("hub:c4", test=4, max_train=30, **options)
    folder = prepared(cfg, root)
    about = json.loads((folder / "dataset.json").read_text())
    assert about["sizes"]["train"] == 30 and about["documents"]["test"] == 4
    held_out, test = (load_texts(cfg, name, root)[0] for name in ("validation", "test"))
    assert held_out == texts["train"][:5] and test == texts["validation"][:4]
    tokenizer, tokens = load_tokenizer(cfg, folder / "tokenizer.json"), []
    for document in texts["train"][5 : 5 + about["documents"]["train"]]:
        assert len(tokens) < 301  # every document that was read was needed
        tokens += [*tokenizer.encode(document).ids, about["end_of_text_id"]]
    (blocks,) = open_split(folder, "train").read(torch.arange(30))
    assert blocks[:, :-1].flatten().tolist() == tokens[:300]
    with pytest.raises(DataError, match="hub:c4, split train cannot be read"):
        prepared(corpus_config("hub:c4", **options), root, "whole")


def test_streaming_keeps_copies_of_held_out_documents_out(root):
    train, test = make_texts(30, seed=0), make_texts(6, seed=1)
    documents = [*train[:9], *(t.upper() for t in (*train[:9], *test[:3])), *train[9:]]
    save_texts(root / "set" / "train.jsonl", documents)
    save_texts(root / "set" / "test.jsonl", test)
    options = {"streaming": True, "tokenizer": given(root)}
    cfg = corpus_config(**options)
    parts = {name: load_texts(cfg, name, root)[0] for name in SPLITS}
    assert parts["validation"] == train[:5] and parts["test"] == test
    assert parts["train"] == [*train[5:9], *(t.upper() for t in train[5:9]), *train[9:]]
    single = corpus_config("path:set/train.jsonl", test=3, **options)
    assert load_texts(single, "test", root)[0] == train[:3]
    assert load_texts(single, "validation", root)[0] == train[3:8]


def test_fewer_blocks_are_evenly_spaced_or_for_training_the_first(root):
    whole = prepared(corpus_config(), root, "whole")
    few = prepared(corpus_config(max_train=9, max_validation=4, max_test=4), root, "few")
    for name in SPLITS:
        everything, chosen = (open_split(folder, name) for folder in (whole, few))
        rows = [(everything.tokens == block).all(1).nonzero()[0, 0] for block in chosen.tokens]
        count = len(everything)
        if name == "train":
            assert list(map(int, rows)) == list(range(9))
        else:
            assert list(map(int, rows)) == [i * count // 4 for i in range(4)]
            assert chosen.about["documents"][name] == everything.about["documents"][name]


def test_a_full_disk_is_said_while_tokens_are_written(root, monkeypatch):
    class Full:
        def write(self, _content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    cfg = corpus_config()
    make_tokenizer(cfg, root, root / "tokenizer.json")
    monkeypatch.setattr("d2dmoe.data.tokens.TemporaryFile", lambda dir: Full())
    with pytest.raises(UserError, match="cannot save .*out/tokens: the disk is full.*free some"):
        prepare(cfg, root, root / "out", root / "tokenizer.json")


def test_blank_lines_separate_the_documents_of_plain_text(root):
    texts = ["one\nline after line", "two", *make_texts(20, seed=0)]
    (root / "book.txt").write_text("\n\n" + "\n \n\n".join(texts) + "\n")
    cfg = corpus_config("path:book.txt", test=2)
    parts = [load_texts(cfg, name, root)[0] for name in SPLITS]
    assert sorted(itertools.chain(*parts)) == sorted(texts)


def test_too_few_tokens_for_a_block_are_refused(root):
    with pytest.raises(ConfigError, match="length: the validation documents have .* tokens, too"):
        prepared(corpus_config(length=500), root)


# Errors


@pytest.mark.parametrize("make_config", [texts_config, corpus_config])
def test_a_missing_column_is_named_with_those_that_are_there(make_config, root):
    with pytest.raises(DataError, match="train.jsonl: .*no column 'body'.* text, label. Set `text"):
        prepared(make_config(text="body"), root)
    with pytest.raises(DataError, match="no column 'class'.* text, label. Set `label`"):
        prepared(texts_config(label="class"), root)
    with pytest.raises(DataError, match="the text of row 0 .* is of type int. Set `text`"):
        save_rows(root / "set" / "train.jsonl", [{"text": 1, "label": 2}])
        prepared(make_config(), root)


@pytest.mark.parametrize("empty", ["", " \n\t", None])
@pytest.mark.parametrize("make_config", [texts_config, corpus_config])
def test_an_empty_text_is_named_by_its_row(make_config, empty, root):
    with (root / "set" / "test.jsonl").open("a") as file:
        file.write(json.dumps({"text": empty, "label": "a"}))
    with pytest.raises(DataError, match="path:set, test.jsonl: the text of row 10 .*is empty.*Rem"):
        prepared(make_config(), root)


def test_labels_that_are_no_classes_are_named(root):
    save_rows(root / "set" / "test.jsonl", [{"text": "x", "label": "c"}])
    with pytest.raises(DataError, match="classes that no training text has: c"):
        prepared(texts_config(), root)
    save_rows(root / "set" / "test.jsonl", [{"text": "x", "label": [1]}])
    with pytest.raises(DataError, match=r"the label of row 0 .* is \[1\], which is no class"):
        prepared(texts_config(), root)
    save_rows(root / "set" / "test.jsonl", [{"text": "x", "label": None}])
    with pytest.raises(DataError, match="no labelled test split among test, train"):
        prepared(texts_config(), root)


def test_broken_source_files_are_named(root):
    path = root / "set" / "train.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="path:set, train.jsonl cannot be read.*save it again"):
        prepared(corpus_config(), root)
    path.rename(path.with_suffix(".parquet"))
    with pytest.raises(DataError, match="path:set, train.parquet cannot be read"):
        prepared(corpus_config(), root)


def test_a_failing_download_names_source_and_remedy(root, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match="hub:a/b: .*no route to host.*Check the name, `subset`"):
        load_texts(texts_config("hub:a/b"), "train", root)


@pytest.mark.parametrize("make_config", [texts_config, corpus_config])
def test_missing_and_damaged_prepared_files_are_named(make_config, root):
    cfg = make_config()
    with pytest.raises(DataError, match="tokenizer.json is missing. Rerun rule `tokenizer`"):
        prepare(cfg, root, root / "out", root / "out" / "tokenizer.json")
    folder = prepared(cfg, root)
    path = folder / "train.safetensors"
    whole = path.read_bytes()
    for broken in (whole[:-10], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="train.safetensors is damaged.*Rerun rule `dataset`"):
            open_split(folder, "train")
    path.unlink()
    with pytest.raises(DataError, match="train.safetensors is missing.*Rerun rule `dataset`"):
        open_split(folder, "train")
