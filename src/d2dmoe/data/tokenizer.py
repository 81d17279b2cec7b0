"""A task's tokenizer, one tokenizer.json: trained on its training texts alone, or ready-made."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from d2dmoe.config.data import CorpusConfig, TextsConfig
from d2dmoe.config.sources import check_tokenizer, find_tokenizer
from d2dmoe.data.text_splits import load_texts
from d2dmoe.errors import DataError
from d2dmoe.io.files import write_atomically
from d2dmoe.jobs.progress import logger

START, END = "[CLS]", "[SEP]"  # around each labelled text, for a tokenizer that is trained here


def make_tokenizer(cfg: TextsConfig | CorpusConfig, root: Path, path: Path) -> None:
    """Write the tokenizer that `cfg.tokenizer` asks for to `path`.

    A trained one has seen no validation or test text. A ready-made one is copied unchanged.

    Args:
        cfg: the dataset and its tokenizer.
        root: the repository root.
        path: of the tokenizer.json to write.

    Raises:
        DataError: the texts or the tokenizer are missing or damaged, or it lacks the special token
            that the task needs.
    """
    source = cfg.tokenizer.source
    if source == "train":
        texts, _ = load_texts(cfg, "train", root)
        content = train_tokenizer(cfg, texts).encode()
    else:
        content = _published(source, root).read_bytes()
    tokenizer = _parse(content, f"tokenizer {source}", "Fetch or save it again.")
    _special_token(cfg, tokenizer, f"tokenizer {source}")
    logger.info("tokenizer %s: %d tokens", source, vocab_size(tokenizer))
    write_atomically(path, lambda p: p.write_bytes(content))


def train_tokenizer(cfg: TextsConfig | CorpusConfig, texts: Iterable[str]) -> str:
    """The tokenizer.json of byte-level BPE (as GPT-2's) with at most `vocab_size` tokens.

    A labelled text becomes "[CLS] text [SEP]". The same texts give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    assert cfg.tokenizer.vocab_size is not None  # as of every tokenizer that is trained
    _use_one_thread()
    own = [cfg.tokenizer.end_of_text] if cfg.kind == "corpus" else [cfg.tokenizer.pad, START, END]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.tokenizer.vocab_size,
        min_frequency=2,
        special_tokens=own,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that no text is unknown
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if cfg.kind == "texts":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}",
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in (START, END)],
        )
    return tokenizer.to_str(pretty=True)


def load_tokenizer(cfg: TextsConfig | CorpusConfig, path: Path | None):
    """The `tokenizers.Tokenizer` that `make_tokenizer` wrote, made to cut texts as `cfg` asks.

    Names of special tokens in a text are read as text. Labelled texts are cut to `length` tokens,
    so that special ones at their end stay.

    Raises:
        DataError: the file is missing or damaged.
    """
    remedy = "Rerun rule `tokenizer` (`snakemake --forcerun tokenizer`)."
    if path is None or not path.is_file():
        raise DataError(f"the tokenizer {path or ''} is missing. {remedy}")
    tokenizer = _parse(path.read_bytes(), str(path), remedy)
    _special_token(cfg, tokenizer, str(path))
    _use_one_thread()
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()  # published ones may pad and cut by themselves
    tokenizer.no_truncation()
    if cfg.kind == "texts":
        tokenizer.enable_truncation(cfg.length)
    return tokenizer


def vocab_size(tokenizer) -> int:
    """Rows that an embedding of all its tokens needs; numbers may be left out between them."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def vocabulary_digest(tokenizer) -> str:
    """SHA-256 of all its tokens and their numbers: the same for all that share a vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def _published(source: str, root: Path) -> Path:
    check_tokenizer(source, root)
    kind, _, name = source.partition(":")
    name, _, revision = name.partition("@") if kind == "hub" else (name, "", "")
    if kind == "path" or (root / name).is_dir():
        path = find_tokenizer(root / name)
        if not path.is_file():
            raise DataError(f"tokenizer {source}: there is no file {path}. Correct the source.")
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json", revision=revision or None))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise DataError(
            f"tokenizer {source} cannot be fetched ({type(error).__name__}: {error}). Check the "
            "name, the network and, if it is gated, `hf auth login`; or fetch its tokenizer.json "
            "elsewhere and give it as path:FILE."
        ) from error


def _parse(content: bytes, name: str, remedy: str):
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # tokenizers raises Exception itself
        raise DataError(f"{name} is damaged, or no tokenizer ({error}). {remedy}") from error


def _special_token(cfg: TextsConfig | CorpusConfig, tokenizer, name: str) -> None:
    key = "end_of_text" if cfg.kind == "corpus" else "pad"
    token = getattr(cfg.tokenizer, key)
    if tokenizer.token_to_id(token) is None:
        added = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        raise DataError(
            f"{name} has no token {token!r}. Set `tokenizer.{key}` to one that it has; its special "
            f"tokens are {', '.join(added[:20]) or 'none'}."
        )


def _use_one_thread() -> None:
    """A job has the threads that its rule says; and threads are in the way of worker processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
