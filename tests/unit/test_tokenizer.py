"""Laws of the tokenizers: trained on training texts alone, the same each time, or copied as is."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from small_texts import make_texts

from d2dmoe.config.data import check_source, data_config
from d2dmoe.data.text_splits import load_texts
from d2dmoe.data.tokenizer import load_tokenizer, make_tokenizer, train_tokenizer
from d2dmoe.errors import DataError

TRAINED = {"source": "train", "vocab_size": 300}
KINDS = {
    "texts": {"kind": "texts", "source": "path:set", "length": 16, "validation": 6},
    "corpus": {"kind": "corpus", "source": "path:set", "length": 16, "validation": 6},
}


def config(kind: str, tokenizer: dict | None = None, **changes):
    return data_config({**KINDS[kind], "tokenizer": tokenizer or TRAINED, **changes})


def save_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository with a set of labelled texts, which serves as a corpus too."""
    save_jsonl(tmp_path / "set" / "train.jsonl", make_texts(40, seed=0))
    save_jsonl(tmp_path / "set" / "test.jsonl", make_texts(8, seed=1))
    return tmp_path


def published(root: Path, **changes) -> Path:
    """A tokenizer that somebody else has trained, with settings of its own."""
    path = root / "given" / "tokenizer.json"
    path.parent.mkdir(exist_ok=True)
    content = json.loads(train_tokenizer(config("corpus", **changes), make_texts(20, seed=3)))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(content))
    return path


# Configuration


def test_a_vocabulary_size_belongs_to_trained_tokenizers_alone():
    for wrong in ({"source": "train"}, {"source": "hub:gpt2", "vocab_size": 300}, {}):
        with pytest.raises(ValidationError, match="vocab_size"):
            data_config({**KINDS["texts"], "tokenizer": wrong})
    assert config("corpus", {"source": "hub:gpt2@main"}).tokenizer.vocab_size is None


@pytest.mark.parametrize("source", ["gpt2", "train:x", "hub:", "path:", "vendored:x"])
def test_unknown_forms_are_refused_with_the_allowed_ones(source):
    with pytest.raises(ValidationError, match="names no tokenizer.*train.*hub:NAME.*path:"):
        config("texts", {"source": source, "vocab_size": None})


def test_a_missing_tokenizer_is_found_before_any_job(root):
    with pytest.raises(DataError, match="there is no file .*nowhere.*save_pretrained"):
        check_source(config("corpus", {"source": "path:nowhere"}), root)
    with pytest.raises(DataError, match="no tokenizer of the Hugging Face hub"):
        check_source(config("corpus", {"source": "hub:./nowhere"}), root)


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_bytes(kind, root):
    for name in "ab":
        make_tokenizer(config(kind), root, root / name)
    assert (root / "a").read_bytes() == (root / "b").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_has_seen_no_validation_or_test_text(kind, root):
    """Words of one split only: those of the training texts have become tokens, others never."""
    train, test = make_texts(40, seed=0), make_texts(8, seed=1)
    words = {text: f"Zq{chr(65 + i // 26)}{chr(65 + i % 26)}Zq" for i, text in enumerate(train)}
    save_jsonl(root / "set" / "train.jsonl", [f"{t} " + f"{words[t]} " * 30 for t in train])
    save_jsonl(root / "set" / "test.jsonl", [f"{t} " + "XjXjXj " * 300 for t in test])
    cfg = config(kind, TRAINED | {"vocab_size": 2000})
    make_tokenizer(cfg, root, root / "tokenizer.json")
    vocabulary = set(load_tokenizer(cfg, root / "tokenizer.json").get_vocab())
    held_out = " ".join(load_texts(cfg, "validation", root)[0])
    known = {word: f"Ġ{word}" in vocabulary for word in words.values()}
    assert list(known.values()).count(False) == 6
    assert all(known[word] == (word not in held_out) for word in known)
    assert not any("Xj" in token or "jX" in token for token in vocabulary)


def test_labelled_texts_stand_between_special_tokens(root):
    make_tokenizer(config("texts"), root, root / "t")
    tokenizer = load_tokenizer(config("texts"), root / "t")
    tokens = tokenizer.encode("the model [SEP] runs").tokens
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"
    assert tokens.count("[SEP]") == 1  # what the text says is text
    assert tokenizer.decode(tokenizer.encode("the naïve 😀").ids) == "the naïve 😀"
    assert tokenizer.get_vocab_size() <= 300 and tokenizer.token_to_id("[PAD]") == 0


def test_any_text_survives_a_trained_tokenizer(root):
    make_tokenizer(config("corpus"), root, root / "t")
    tokenizer = load_tokenizer(config("corpus"), root / "t")
    for text in ("  two  spaces\n\ttabs ", "中文 ελληνικά", "\x00<|endoftext|>", "\u2028é\u0301"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


# Ready-made ones


def test_ready_made_ones_are_copied_unchanged_and_their_own_cutting_is_off(root):
    path = published(root)
    for source in ("path:given", "path:given/tokenizer.json", "hub:given"):
        cfg = config("corpus", {"source": source})
        make_tokenizer(cfg, root, root / "copy")
        assert (root / "copy").read_bytes() == path.read_bytes()
    assert len(load_tokenizer(cfg, root / "copy").encode("the river is old and green").ids) > 3


def test_hub_names_and_revisions_reach_the_hub(root, monkeypatch):
    asked = []

    def download(name, file, revision):
        asked.append((name, file, revision))
        return str(published(root))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for source in ("hub:openai-community/gpt2", "hub:a/b@v1"):
        make_tokenizer(config("corpus", {"source": source}), root, root / "copy")
    assert asked == [
        ("openai-community/gpt2", "tokenizer.json", None),
        ("a/b", "tokenizer.json", "v1"),
    ]


def test_a_failing_download_names_source_and_remedy(root, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(DataError, match="hub:a/b cannot be fetched.*no route.*path:FILE"):
        make_tokenizer(config("corpus", {"source": "hub:a/b"}), root, root / "copy")


def test_missing_damaged_and_foreign_files_are_named(root):
    cfg = config("corpus", {"source": "path:given"})
    with pytest.raises(DataError, match="there is no file .*given"):
        make_tokenizer(cfg, root, root / "copy")
    whole = published(root).read_text()
    for broken in (whole[:-20], "{}", "\udcff"):
        content = broken.encode(errors="surrogateescape")
        (root / "given" / "tokenizer.json").write_bytes(content)
        with pytest.raises(DataError, match="tokenizer path:given is damaged, or no tokenizer"):
            make_tokenizer(cfg, root, root / "copy")
        (root / "made").write_bytes(content)
        with pytest.raises(DataError, match="made is damaged.*Rerun rule `tokenizer`"):
            load_tokenizer(cfg, root / "made")
    with pytest.raises(DataError, match="gone is missing.*Rerun rule `tokenizer`"):
        load_tokenizer(cfg, root / "gone")
    assert not (root / "copy").exists()


def test_a_tokenizer_without_the_needed_token_is_refused(root):
    published(root)
    with pytest.raises(DataError, match=r"no token '\[PAD\]'.*tokenizer.pad.*<\|endoftext\|>"):
        make_tokenizer(config("texts", {"source": "path:given"}), root, root / "copy")
    other = {"source": "path:given", "end_of_text": "<eos>"}
    with pytest.raises(DataError, match=r"no token '<eos>'.*tokenizer.end_of_text"):
        make_tokenizer(config("corpus", other), root, root / "copy")
