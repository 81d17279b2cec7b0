"""From texts to tokens: samples of labelled texts, and blocks of a corpus's running text.

A corpus may have more tokens than memory can hold: they are written to a file as they come, and
training reads them from one.
"""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2dmoe.config.data import CorpusConfig, TextsConfig
from d2dmoe.data.text_splits import split_documents, split_labelled
from d2dmoe.data.tokenizer import vocab_size
from d2dmoe.errors import ConfigError
from d2dmoe.io.files import writing

Prepared = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]  # splits' tensors, a description


def prepare_texts(cfg: TextsConfig, root: Path, tokenizer, seed: int) -> Prepared:
    """The tensors of each split, and the description of the set.

    A split holds tokens, int32 [all tokens], special ones included; offsets, int64 [N + 1], of the
    texts in it; and labels, int64 [N].

    Raises:
        DataError: the source is missing, damaged or of another form.
        ConfigError: `cfg.validation` does not fit the classes.
    """
    parts, classes = split_labelled(cfg, root, seed)
    splits = {}
    for name, part in parts.items():
        encoded = [np.array(tokenizer.encode(text).ids, np.int32) for text in part.texts]
        splits[name] = {
            "tokens": torch.from_numpy(np.concatenate(encoded)),
            "offsets": torch.tensor([0, *map(len, encoded)]).cumsum(0),
            "labels": part.labels,
        }
    about = {
        "classes": classes,
        "length": cfg.length,
        "pad_id": tokenizer.token_to_id(cfg.tokenizer.pad),
        "vocab_size": vocab_size(tokenizer),
        "sizes": {name: len(part.texts) for name, part in parts.items()},
    }
    return splits, about


def prepare_corpus(cfg: CorpusConfig, root: Path, tokenizer, seed: int, scratch: Path) -> Prepared:
    """The tensors of each split, and the description of the set.

    A split holds tokens, int32 [N, length + 1]. Its documents, an end-of-text token after each,
    form one stream; block i is the stream from i · length on, and its last token is the next one's
    first: in one block each token predicts the next, and all blocks together predict every token
    but the stream's first exactly once. What is left over at the end is no block.

    The description says for each split how many documents were read, how many tokens its blocks
    predict, and how many UTF-8 bytes of text these stand for.

    Tokens take no memory: until the tensors are gone, 8 bytes each on the disk of `scratch`, a
    folder, in files without a name.

    Raises:
        DataError: the source is missing, damaged or of another form.
        ConfigError: the sizes asked for do not fit the source.
        UserError: the disk is full.
    """
    end = tokenizer.token_to_id(cfg.tokenizer.end_of_text)
    most = {"train": cfg.max_train, "validation": cfg.max_validation, "test": cfg.max_test}
    about = {"length": cfg.length, "end_of_text_id": end, "vocab_size": vocab_size(tokenizer)}
    about |= {key: {} for key in ("sizes", "documents", "tokens", "bytes")}
    splits = {}
    for name, documents in split_documents(cfg, root, seed).items():
        # Training blocks are the first ones: no more documents are read than they need.
        stop = cfg.max_train * cfg.length + 1 if name == "train" and cfg.max_train else None
        tokens, sizes, count = _stream(documents, tokenizer, end, stop, scratch)
        starts = _block_starts(name, len(tokens), cfg.length, most[name])
        blocks = _windows(tokens, cfg.length + 1)[starts]
        predicted = _windows(sizes[1:], cfg.length)[starts]
        splits[name] = {"tokens": torch.from_numpy(blocks)}
        about["sizes"][name] = len(blocks)
        about["documents"][name] = count
        about["tokens"][name] = len(blocks) * cfg.length
        about["bytes"][name] = int(predicted.sum(dtype=np.int64))
    return splits, about


def byte_sizes(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    """UTF-8 bytes of `text` that each token stands for, int32 [tokens]; together the whole text.

    A token stands for what lies between the end of the tokens before it and its own; the last one
    also for what may follow. So a character that several tokens share is the first one's, and
    special tokens stand for nothing.

    Args:
        text: the text.
        spans: of each token the characters, from and to, in `text`.
    """
    if not spans:
        return np.zeros(0, np.int32)
    ends = np.maximum.accumulate(np.array(spans)[:, 1])
    ends[-1] = len(text)
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        more: Any = sum((points >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
        ends = np.concatenate([[0], (1 + more).cumsum()])[ends]
    return np.diff(ends, prepend=0).astype(np.int32)


def _stream(
    documents: Iterable[str], tokenizer, end: int, stop: int | None, scratch: Path
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens and their bytes, int32 [T], and the number of documents read; T is `stop` or more."""
    tokens, sizes, count = _Spool(scratch), _Spool(scratch), 0
    for text in documents:
        encoding = tokenizer.encode(text)
        tokens.extend(np.array([*encoding.ids, end], np.int32))
        sizes.extend(np.append(byte_sizes(text, encoding.offsets), np.int32(0)))
        count += 1
        if stop is not None and tokens.length >= stop:
            break
    return tokens.array(), sizes.array(), count


class _Spool:
    """Numbers that are written one after the other, then read as one array that lies on disk."""

    def __init__(self, folder: Path):
        self.path, self.length = folder / "tokens", 0  # what errors call it
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self.file = TemporaryFile(dir=folder)

    def extend(self, numbers: np.ndarray) -> None:
        """Append int32 [N] numbers."""
        with writing(self.path):
            self.file.write(numbers.tobytes())
        self.length += len(numbers)

    def array(self) -> np.ndarray:
        """All of them, int32 [length]."""
        if not self.length:
            return np.zeros(0, np.int32)
        with writing(self.path):
            self.file.flush()
        return np.memmap(self.file, np.int32, mode="c")


def _windows(numbers: np.ndarray, length: int) -> np.ndarray:
    """All runs of so many neighbours, a view [N, length]."""
    return np.lib.stride_tricks.sliding_window_view(numbers, length, writeable=True)


def _block_starts(name: str, tokens: int, length: int, most: int | None) -> slice | np.ndarray:
    """Where the blocks of a stream begin: all, the first for training, else evenly spaced ones.
    What a slice chooses of an array is no copy."""
    available = max(tokens - 1, 0) // length
    if not available:
        raise ConfigError(
            f"length: the {name} documents have {tokens} tokens, too few for a block of {length} "
            "and the token after it. Choose shorter blocks, or hold out other numbers of documents."
        )
    count = min(most or available, available)
    if name == "train" or count == available:
        return slice(0, count * length, length)
    return np.arange(count) * available // count * length
