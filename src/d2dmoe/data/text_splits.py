"""Split a set of texts or documents; no validation or test text, nor a copy of one, trains.

Two texts are copies if they agree but for capitals and white space. Copies of a held-out text are
left out of the training set, where they would let a model remember what it is asked.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2dmoe.config.data import CorpusConfig, TextsConfig
from d2dmoe.config.sources import TEST_NAMES
from d2dmoe.data.text_sources import Table, open_tables
from d2dmoe.errors import ConfigError, DataError
from d2dmoe.jobs.progress import logger


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the number of each one's class."""

    texts: list[str]
    labels: Tensor  # int64 [N]

    def __getitem__(self, indices: Tensor) -> "LabelledTexts":
        return LabelledTexts([self.texts[i] for i in indices.tolist()], self.labels[indices])


def load_texts(
    cfg: TextsConfig | CorpusConfig, part: str, root: Path, seed: int = 0
) -> tuple[list[str], Tensor | None]:
    """The texts of the train, validation or test split, and their classes, int64 [N].

    They are those that `prepare` takes with the same arguments; of a corpus the documents (without
    classes) of which it takes so many blocks.

    Raises:
        DataError: the source is missing, damaged or of another form.
        ConfigError: the sizes asked for do not fit the source.
    """
    if cfg.kind == "corpus":
        return list(split_documents(cfg, root, seed)[part]), None
    chosen = split_labelled(cfg, root, seed)[0][part]
    return chosen.texts, chosen.labels


def split_labelled(
    cfg: TextsConfig, root: Path, seed: int = 0
) -> tuple[dict[str, LabelledTexts], list[str]]:
    """The texts of each split in stored order, and the names of the classes.

    Raises:
        DataError: the source is missing, damaged or of another form.
        ConfigError: `cfg.validation` does not fit the classes.
    """
    tables = open_tables(cfg, root)
    rows = [_labelled(tables, names, cfg) for names in (("train",), TEST_NAMES)]
    classes = _classes(tables["train"], rows[0], cfg)
    train, test = (_numbered(part, classes, cfg) for part in rows)
    seen = set(map(fingerprint, test.texts))
    pool = _without(train, seen)
    count = cfg.validation or max(1, len(pool.labels) // 10)
    held_out = choose_validation(pool.labels, count, classes, seed)
    validation = pool[held_out]
    kept = torch.ones(len(pool.labels), dtype=torch.bool)
    kept[held_out] = False
    rest = _without(pool[kept.nonzero()[:, 0]], set(map(fingerprint, validation.texts)))
    _log_copies(cfg.source, len(train.texts) - len(validation.texts) - len(rest.texts))
    if len(rest.labels.unique()) < 2:
        raise DataError(
            f"{cfg.source}: {len(rest.texts)} training texts are left, not of two classes: the "
            "others are copies of held-out ones. Remove copies from the source."
        )
    splits = {
        "train": rest[first_proportional(rest.labels, cfg.max_train)],
        "validation": validation,
        "test": test[first_proportional(test.labels, cfg.max_test)],
    }
    return splits, classes


def split_documents(cfg: CorpusConfig, root: Path, seed: int = 0) -> dict[str, Iterable[str]]:
    """The documents of each split; those of train can be read once.

    Documents are held out at random, or, of a streamed source, from its beginning: the test set
    first, then the validation set. Training documents keep their order.

    Raises:
        DataError: the source is missing, damaged or of another form.
        ConfigError: the sizes asked for do not fit the source.
    """
    tables = open_tables(cfg, root)
    own_test = next((tables[name] for name in TEST_NAMES if name in tables), None)
    if own_test is None and cfg.test is None:
        raise ConfigError(
            f"test: {cfg.source} has no test split of its own (it has {', '.join(tables)}). "
            "Set `test` to the number of documents to hold out."
        )
    pool = _Pool(tables["train"].texts(cfg))
    if not cfg.streaming:
        pool.shuffle(seed)
    if own_test:
        test = list(islice(own_test.texts(cfg), cfg.test))
        pool.leave_out(test)
    else:
        assert cfg.test is not None  # refused above
        test = pool.hold_out(cfg.test, "test")
    validation = pool.hold_out(cfg.validation or pool.tenth(), "validation")
    if not cfg.streaming:
        pool.sort()
    return {"train": _training_texts(pool, cfg.source), "validation": validation, "test": test}


def fingerprint(text: str) -> bytes:
    """The same for texts that agree but for capitals and white space."""
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).digest()


def choose_validation(labels: Tensor, count: int, classes: list[str], seed: int) -> Tensor:
    """Indices, ascending, of `count` texts chosen at random, in proportion to their classes.

    Args:
        labels: int64 [N].
        count: how many in all.
        classes: their names.
        seed: of the choice.

    Raises:
        ConfigError: a class would be left without texts.
    """
    if count < len(labels):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        chosen = order[first_proportional(labels[order], count)].sort().values
        sizes, taken = (x.bincount(minlength=len(classes)) for x in (labels, labels[chosen]))
        emptied = [name for name, n, k in zip(classes, sizes, taken, strict=True) if n == k > 0]
        if not emptied:
            return chosen
    else:
        emptied = classes
    raise ConfigError(
        f"validation: of {len(labels)} texts, {count} cannot be held out: no training text would "
        f"be left of {', '.join(emptied)}. Hold out fewer."
    )


def first_proportional(labels: Tensor, count: int | None) -> Tensor:
    """Indices, ascending, of the first `count` texts, of each class in proportion to its size.

    `labels` is int64 [N]; all are taken if `count` is None or more than there are. What rounding
    leaves over goes to the classes with the largest remainders.
    """
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    classes, sizes = labels.unique(return_counts=True)
    shares, remainders = sizes * count // len(labels), sizes * count % len(labels)
    missing = count - int(shares.sum())
    shares[remainders.sort(descending=True, stable=True).indices[:missing]] += 1
    chosen = [(labels == c).nonzero()[:n, 0] for c, n in zip(classes, shares, strict=True)]
    return torch.cat(chosen).sort().values


def _labelled(
    tables: dict[str, Table], names: tuple[str, ...], cfg: TextsConfig
) -> list[tuple[str, str]]:
    """The rows of the first split of these names whose labels are not withheld."""
    for name in names:
        rows: list[Any] = list(tables[name].labelled(cfg)) if name in tables else []
        withheld = [i for i, (_, label) in enumerate(rows) if label is None]
        if rows and not withheld:
            return rows
        if len(withheld) < len(rows):
            raise DataError(
                f"{tables[name].where}: row {withheld[0]} (from 0) has no label, as "
                f"{len(withheld)} of {len(rows)} rows. Label or remove such rows."
            )
    raise DataError(
        f"{cfg.source}: there is no labelled {names[0]} split among {', '.join(tables)}."
    )


def _classes(table: Table, rows: list[tuple[str, str]], cfg: TextsConfig) -> list[str]:
    """The names of the classes: the source's own, else the sorted labels of the training texts."""
    found = {label for _, label in rows}
    if len(found) < 2:
        raise DataError(
            f"{table.where}: all {len(rows)} training texts are of the class {found.pop()!r}; at "
            "least two classes are needed."
        )
    if cfg.label in table.classes:
        return list(table.classes[cfg.label])
    _check_forms(table.where, found)
    are_numbers = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in found)
    return sorted(found, key=int if are_numbers else None)


def _check_forms(where: str, labels: set[str]) -> None:
    """No two labels look alike: é is one character, or e and an accent."""
    known: dict[str, str] = {}
    for label in labels:
        other = known.setdefault(unicodedata.normalize("NFC", label).strip(), label)
        if other != label:
            raise DataError(
                f"{where}: the labels {other!a} and {label!a} look alike. Write them as one."
            )


def _numbered(rows: list[tuple[str, str]], classes: list[str], cfg: TextsConfig) -> LabelledTexts:
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = {label for _, label in rows} - set(numbers)
    if unknown:
        raise DataError(
            f"{cfg.source}: test texts have classes that no training text has: "
            f"{', '.join(sorted(unknown))}. Make the labels of both agree."
        )
    return LabelledTexts([text for text, _ in rows], torch.tensor([numbers[c] for _, c in rows]))


def _without(texts: LabelledTexts, seen: set[bytes]) -> LabelledTexts:
    kept = [i for i, text in enumerate(texts.texts) if fingerprint(text) not in seen]
    return texts[torch.tensor(kept, dtype=torch.int64)]


class _Pool:
    """Documents of the training split, each given once; copies of held-out ones are left out."""

    def __init__(self, texts: Iterator[str]):
        self.documents: Iterator[tuple[int, str]] = enumerate(texts)  # row in the source, text
        self.held_out: set[bytes] = set()
        self.copies = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for row, text in self.documents:
            if fingerprint(text) in self.held_out:
                self.copies += 1
            else:
                yield row, text

    def shuffle(self, seed: int) -> None:
        """Bring what has not been given yet into a random order."""
        documents = list(self.documents)
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
        self.documents = iter([documents[i] for i in order.tolist()])

    def sort(self) -> None:
        """Bring what has not been given yet back into the stored order."""
        self.documents = iter(sorted(self.documents))

    def tenth(self) -> int:
        """A tenth of the documents that have not been given yet, copies counted; at least one."""
        documents = list(self.documents)
        self.documents = iter(documents)
        return max(1, len(documents) // 10)

    def leave_out(self, texts: Iterable[str]) -> None:
        """Give no copies of these texts from now on."""
        self.held_out.update(map(fingerprint, texts))

    def hold_out(self, count: int, key: str) -> list[str]:
        """The next `count` texts, in stored order; no copies of them follow."""
        taken = [text for _, text in sorted(islice(self, count))]
        if len(taken) < count:
            raise ConfigError(
                f"{key}: {count} documents cannot be held out of the training documents; only "
                f"{len(taken)} are there. Hold out fewer."
            )
        self.leave_out(taken)
        return taken


def _training_texts(pool: _Pool, source: str) -> Iterator[str]:
    try:
        for _, text in pool:
            yield text
    finally:  # a reader may stop before the end
        _log_copies(source, pool.copies)


def _log_copies(source: str, count: int) -> None:
    if count:
        logger.info("%s: %d training texts are copies of held-out ones: left out", source, count)
